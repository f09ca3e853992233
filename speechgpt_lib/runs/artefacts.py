"""Files: whole or absent, locked by one process at a time, known to steps by their hashes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from speechgpt_lib.errors import UserError

ENDS = 1 << 20  # bytes at either end of a file that tell it from another


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path for a file or folder, which on success takes the place of `path`.

    On any error it is removed.
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
            what = f"could not write {path}: {reason}; nothing there was changed"
            raise UserError(what) from error
        raise
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


def write_failure(error: Exception) -> str | None:
    """Why a write failed (a full disk above all), or None when `error` is something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if found := re.search(r"([^:]+) \(os error \d+\)", text):  # safetensors, tokenizers (in Rust)
        return found[1].strip()
    if isinstance(error, RuntimeError) and re.search("unexpected pos|iostream|PytorchStream", text):
        return "the file could not be written to its end; is the disk full?"  # torch.save
    return None


def replace(source: Path, target: Path) -> None:
    """Move `source` over `target`, even where that is a folder or a link to one."""
    if not target.is_dir():
        os.replace(source, target)
        return
    # Moved aside first, since rename can't put a folder there.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.rename(target, aside / target.name)
    os.rename(source, target)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, otherwise: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the lock `path` during the block; the file is removed afterwards.

    Where another process holds it: wait for it, or raise UserError with the text `otherwise`; the
    same where nothing can be written.
    """
    while True:
        with _open_lock(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(otherwise) from None
            ours = False
            with contextlib.suppress(FileNotFoundError):
                ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if not ours:  # its holder removed it after we opened it: others would not find this one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _open_lock(path: Path) -> IO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w")
    except OSError as error:
        what = f"cannot use {path.parent} to write in ({error.strerror})"
        cure = "what is finished there can be read; to make more choose another --run-dir"
        raise UserError(f"{what}: {cure} (`run_dir` in a notebook)") from error


def held_locks(folder: Path) -> list[Path]:
    """The locks of a run directory that somebody holds: `<folder>/NN_step/name.lock`."""
    held = []
    for path in sorted(folder.glob("*/*.lock")):
        with contextlib.suppress(OSError), open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path)
    return held


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict:
    """Read a JSON file; UserError for one that is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "was the step that writes it interrupted? run it again"
        raise UserError(f"{path} is missing; {why}") from None
    except ValueError as error:  # no JSON, or no text
        cure = "delete it and run its step again"
        raise UserError(f"{path} is not valid JSON ({error}); {cure}") from None


def hash_json(value: object) -> str:
    """SHA-256 of the JSON text of `value`, the same in whatever order its keys are."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path, skip: tuple[str, ...] = ()) -> dict[str, dict]:
    """Relative path → {sha256, bytes} of files below `folder`, sorted, without names in `skip`."""
    files = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name.as_posix(): {"sha256": hash_file(path), "bytes": path.stat().st_size}
        for name, path in files.items()
        if name.parts[0] not in skip
    }


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but for what systems, editors and Python leave there."""
    names = r"[.#].*|.*(~|\.sw.|\.bak|\.orig|\.rej|\.tmp)|__pycache__|Thumbs.db|desktop.ini|Icon."
    litter = re.compile(names, re.DOTALL).fullmatch
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in found if not any(map(litter, p.relative_to(folder).parts)))


def fingerprint(root: Path | str, source: Any) -> dict:
    """What tells an imported result: settings; of files the size and a hash of both their ends.

    source: a path, or settings (pydantic) some of whose values are paths, relative to `root`.
    """
    settings = source if isinstance(source, str) else source.model_dump(mode="json")
    values = [source] if isinstance(source, str) else settings.values()
    files = []
    for value in (value for value in values if isinstance(value, str)):
        path = Path(root).expanduser() / Path(value).expanduser()
        inside = files_in(path) if path.is_dir() else [path]
        files += [_ends(file) for file in inside if file.is_file()]
    return {"imported": settings, "files": files}


def _ends(file: Path) -> list:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        digest = hashlib.sha256(opened.read(ENDS))
        opened.seek(max(0, size - ENDS))
        digest.update(opened.read(ENDS))
    return [file.name, size, digest.hexdigest()[:16]]
