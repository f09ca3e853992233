"""Files that are either whole or absent: atomic writes, and the hashes by which steps know their
inputs and outputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechgpt_lib.errors import UserError

ENDS = 1 << 20  # bytes at either end of a file that tell it from another


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the place of `path`, on any error it
    is removed.

    Works for a file or a folder: the caller creates whichever it needs at the path given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since some libraries choose a format by it.
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / path.name
    try:
        yield temporary
        replace(temporary, path)
    except Exception as error:
        if reason := write_failure(error):
            raise UserError(
                f"could not write {path}: {reason}; nothing there was changed"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


def write_failure(error: Exception) -> str | None:
    """Why a write failed (a full disk above all), or None when `error` is something else: not every
    library raises OSError for it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if found := re.search(
        r"([^:]+) \(os error \d+\)", str(error)
    ):  # safetensors and tokenizers, which are written in Rust
        return found[1].strip()
    if isinstance(error, RuntimeError) and re.search(
        "unexpected pos|iostream error|PytorchStreamWriter", str(error)
    ):  # torch.save
        return "the file could not be written to its end; is the disk full?"
    return None


def replace(source: Path, target: Path) -> None:
    """Move `source` over `target`.  A folder or link that is in the way is moved aside first, since
    rename can't put a folder there."""
    if target.is_dir():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.rename(target, aside / target.name)
        os.rename(source, target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(source, target)


def write_text(path: Path | str, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; was the step that writes it interrupted? run it again"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it and run its step again"
        ) from None


def hash_json(value: object) -> str:
    """SHA-256 over the canonical JSON text of `value`: the same for equal settings whatever the
    order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path, skip: tuple[str, ...] = ()) -> dict[str, dict]:
    """Relative path → {sha256, bytes} for every file below `folder`, sorted, without names in
    `skip`."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in skip
    )
    return {
        p.relative_to(folder).as_posix(): {"sha256": hash_file(p), "bytes": p.stat().st_size}
        for p in files
    }


def fingerprint(root: Path | str, source: Any) -> dict:
    """What tells an imported result from another: its settings, and for each file its size and a
    hash of both its ends.

    source: a path, or settings (a pydantic model) some of whose values are paths; relative ones
        start at `root`.
    """
    settings = source if isinstance(source, str) else source.model_dump(mode="json")
    values = (
        [source]
        if isinstance(source, str)
        else [v for v in settings.values() if isinstance(v, str)]
    )
    files = []
    for path in (Path(root).expanduser() / Path(value).expanduser() for value in values):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [_ends(file) for file in inside if file.is_file()]
    return {"imported": settings, "files": files}


def _ends(file: Path) -> list:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        digest = hashlib.sha256(opened.read(ENDS))
        opened.seek(max(0, size - ENDS))
        digest.update(opened.read(ENDS))
    return [file.name, size, digest.hexdigest()[:16]]
