"""A lock on a file: held by one process at a time, and gone with that process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from speechgpt_lib.errors import UserError


@contextlib.contextmanager
def locked(path: Path, otherwise: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the lock `path` during the block; the file is removed afterwards.

    Where another process holds it: wait for it, or raise UserError with the text `otherwise`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(otherwise) from None
            if not _is_file_at(file, path):
                continue  # its holder removed it after we opened it: others would not find ours
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file_at(file: IO, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
