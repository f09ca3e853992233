"""Corpora in an object store (s3://, gs://, memory://, …), through fsspec.

A `StorePath` is listed where it is.  A file of it that is opened comes here whole, into a folder of
this process, which keeps what was read last; TMPDIR leads that folder to a disk of the node.
Who may read a store, and where it is, fsspec knows from its own variables and files, never from a
recipe: docs/corpora-and-units.md.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from speechgpt_lib.errors import UserError, one_line

KEPT_BYTES = 2 * 10**9  # of files from stores, in each process


def located(path: Path | str | StorePath, base: Path | str = "") -> Path | StorePath:
    """A path of this machine or, where it or `base` is a URL, of a store."""
    if isinstance(path, StorePath) or "://" in str(path):
        return StorePath(str(path))
    if "://" in str(base):
        return StorePath(str(base)) / str(path)
    return Path(base).expanduser() / Path(path).expanduser()


def entries(folder: Path | StorePath) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of all in a folder, in no order.  Raises OSError."""
    if isinstance(folder, StorePath):
        yield from folder.entries()
        return
    for entry in os.scandir(folder):
        yield entry.name, entry.is_dir()


class StorePath(os.PathLike):
    """A file or folder of a store, by its URL; as much of `pathlib.Path` as corpora need."""

    def __init__(self, url: str):
        scheme, _, rest = url.partition("://")
        parts = [part for part in rest.split("/") if part not in ("", ".")]
        self.url = f"{scheme}://{'/'.join(parts)}"

    def __truediv__(self, name: str | os.PathLike) -> StorePath:
        return StorePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"StorePath({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def parent(self) -> StorePath:
        """The folder that it is in; of a bucket, itself."""
        scheme, _, rest = self.url.partition("://")
        return StorePath(f"{scheme}://{rest.rpartition('/')[0] or rest}")

    def resolve(self) -> StorePath:
        """Itself: a store has no links."""
        return self

    def is_relative_to(self, other: StorePath) -> bool:
        """Whether it lies below `other`."""
        return f"{self.url}/".startswith(f"{other.url}/")

    def is_dir(self) -> bool:
        """Whether something lies below it."""
        return self._ask("isdir")

    def is_file(self) -> bool:
        """Whether it can be opened."""
        return self._ask("isfile")

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self._ask("exists")

    def entries(self) -> Iterator[tuple[str, bool]]:
        """(name, whether it is a folder) of what lies directly below it."""
        for entry in self._ask("ls", detail=True):
            if name := entry["name"].rstrip("/").rpartition("/")[2]:
                yield name, entry["type"] == "directory"

    def stat(self) -> os.stat_result:
        """Of the file, once it is here."""
        return os.stat(self)

    def __fspath__(self) -> str:
        """Where the file is on this machine, to which it is fetched.  Raises FileNotFoundError."""
        return _here(os.getpid()).get(self)

    def fetch(self, target: str) -> None:
        """Copy the file to `target`, whole or not at all."""
        if not self.is_file():
            raise FileNotFoundError(2, "No such file in the store", self.url)
        self._ask("get_file", target)
        if (found := os.path.getsize(target)) != (told := self._ask("size")):
            raise UserError(f"{self.url} breaks off after {found} of {told} bytes: try again")

    def _ask(self, method: str, *more, **named):
        """What the store says; OSErrors of files as they are, all else as a UserError."""
        import fsspec  # most corpora lie on a disk

        try:
            system, path = fsspec.core.url_to_fs(self.url)
            return getattr(system, method)(path, *more, **named)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except ImportError as error:
            cure = "pip install s3fs for s3://, gcsfs for gs://, adlfs for abfs://"
            raise UserError(f"{self.url} can't be read ({one_line(error)}): {cure}") from None
        except PermissionError as error:
            cure = "give credentials, as docs/corpora-and-units.md says"
            raise UserError(f"{self.url} is closed to you ({one_line(error)}): {cure}") from None
        except Exception as error:  # each store has its own
            cure = "check the address and the network; what is made so far is kept"
            raise UserError(f"{self.url} can't be had ({one_line(error)}): {cure}") from None


class _Here:
    """Files of stores in a folder of this process, up to `KEPT_BYTES`; those not read for longest
    go first."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="speechgpt-store-")
        self.files: OrderedDict[str, tuple[str, int]] = OrderedDict()  # URL → name here, bytes
        self.lock, self.numbers = threading.Lock(), itertools.count()
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def get(self, path: StorePath) -> str:
        """Where the file is here."""
        with self.lock:
            if path.url in self.files:
                self.files.move_to_end(path.url)
                return self.files[path.url][0]
        target = f"{self.folder}/{next(self.numbers)}"
        path.fetch(target)
        with self.lock:
            self.files[path.url] = target, os.path.getsize(target)
            while len(self.files) > 1 and sum(size for _, size in self.files.values()) > KEPT_BYTES:
                _, (old, _) = self.files.popitem(last=False)
                os.unlink(old)
        return target


@functools.cache
def _here(process: int) -> _Here:
    return _Here()  # a forked process has a folder of its own
