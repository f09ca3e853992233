"""Files: whole or absent, locked by one process at a time, known to steps by their hashes."""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from speechgpt_lib.errors import UserError, reading


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


def not_through_links(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses a link: it would empty or fill a file elsewhere."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UserError(f"{path} is a link or a pipe, which is not ours: remove it") from None
        raise


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
                ours = os.path.samestat(os.fstat(file.fileno()), path.lstat())
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
        return open(path, "w", opener=not_through_links)
    except OSError as error:
        what = f"cannot use {path.parent} to write in ({error.strerror})"
        cure = "what is finished there can be read; to make more choose another --run-dir"
        raise UserError(f"{what}: {cure} (`run_dir` in a notebook)") from error


def held_locks(folder: Path) -> list[Path]:
    """The locks of a run directory that somebody holds: `<folder>/NN_step/name.lock`."""
    held = []
    for path in sorted(folder.glob("*/*.lock")):
        with contextlib.suppress(OSError), open(path, opener=not_through_links) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path)
    return held


@contextlib.contextmanager
def open_text(path: Path | str) -> Iterator[BinaryIO]:
    """A UTF-8 file, read behind its byte order mark.  Raises UserError for UTF-16 and UTF-32."""
    with open(path, "rb") as file:
        head = file.read(4)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            what = f"it begins with {head!r}, as UTF-16 does"
            raise UserError(f"{path} is not UTF-8 ({what}): save it as UTF-8")
        file.seek(len(codecs.BOM_UTF8) * head.startswith(codecs.BOM_UTF8))
        yield file


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file without its byte order mark.  Raises UserError for another code."""
    with open_text(path) as file:
        data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 (see line {line}): save it as UTF-8") from None


def escaped(text: object) -> str:
    """The text, with what UTF-8 can't hold (bytes of file names in another code) as JSON has it."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(escaped(text), encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class Facts(dict):
    """An object of a JSON file; a key that it lacks is a UserError that names the file."""

    def __init__(self, pairs: list, where: Path | str):
        super().__init__(pairs)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.where} lacks {key!r}; delete it and run its step again")


def read_json(path: Path | str, cure: str = "delete it and run its step again") -> Facts:
    """Read a JSON object; UserError for a file that holds none."""
    if not Path(path).exists():
        why = "was the step that writes it interrupted? run it again"
        raise UserError(f"{path} is missing; {why}")
    with reading(path, cure, "is not valid JSON"):
        text = read_text(path)
        hooks = {"object_pairs_hook": lambda pairs: Facts(pairs, path), "parse_constant": _refuse}
        found = json.loads(text, **hooks)
        if not isinstance(found, Facts):
            raise ValueError(f"it holds a {type(found).__name__}, expected an object")
        return found


def hash_json(value: object) -> str:
    """SHA-256 of the JSON text of `value`, the same in whatever order its keys are."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"it has {constant}, which JSON has not")


def remove_half_written(folder: Path) -> None:
    """Remove what `atomic_path` has left where its process was killed."""
    # os.walk goes on where a folder vanishes meanwhile: those of living processes come and go.
    for parent, names, _ in os.walk(folder):
        for name in names:
            if re.fullmatch(r"\..+\.[a-z0-9_]{8}", name):
                shutil.rmtree(Path(parent, name), ignore_errors=True)


def hash_folder(folder: Path, wanted: Callable[[str], bool] = bool) -> dict[str, dict]:
    """Relative path → {sha256, bytes} of files below `folder`, sorted; `wanted` is asked for the
    names of files and folders right below it."""
    files = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name.as_posix(): {"sha256": hash_file(path), "bytes": path.stat().st_size}
        for name, path in files.items()
        if wanted(name.parts[0])
    }


def verify_outputs(folder: Path) -> None:
    """Raises UserError for a file of a finished step that is gone, a link, or not as it left it."""
    facts, path = read_json(folder / "facts.json"), folder
    try:
        for path, known in ((folder / name, known) for name, known in facts["outputs"].items()):
            if not stat.S_ISREG(path.lstat().st_mode) or hash_file(path) != known["sha256"]:
                raise OSError("is a link, or was written to, after its step was finished")
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): delete {folder}, make it again") from None


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but for what systems, editors and Python leave there."""
    names = r"[.#].*|.*(~|\.sw.|\.bak|\.orig|\.rej|\.tmp)|__pycache__|Thumbs.db|desktop.ini|Icon."
    litter = re.compile(names, re.DOTALL).fullmatch
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in found if not any(map(litter, p.relative_to(folder).parts)))


def fingerprint(root: Path | str, source: Any) -> dict:
    """What tells an imported result: settings; of files the size and a hash.

    source: a path, or settings (pydantic) some of whose values are paths, relative to `root`.
    """
    settings = source if isinstance(source, str) else source.model_dump(mode="json")
    values = [source] if isinstance(source, str) else settings.values()
    files = []
    for value in (value for value in values if isinstance(value, str)):
        path = Path(root).expanduser() / Path(value).expanduser()
        inside = files_in(path) if path.is_dir() else [path]
        for file, of in ((file, file.stat()) for file in inside if file.is_file()):
            known = _hash_once(file, of.st_size, of.st_mtime_ns, of.st_ctime_ns)
            files.append([file.name, of.st_size, known[:16]])
    return {"imported": settings, "files": files}


@functools.lru_cache(10_000)
def _hash_once(file: Path, *seen: int) -> str:
    return hash_file(file)
