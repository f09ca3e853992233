"""An archive's name → its folder on disk: fetched with resume, checked by its hash, unpacked
atomically.

What arrived lies in `.NAME.part` until the whole is there, so a broken connection or a stopped
program costs nothing: the next call asks the server for the rest only.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests

from speechgpt_lib.corpora.catalogue import ARCHIVES, CORPORA, Archive
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import not_through_links, replace

CHUNK = 1 << 16  # bytes; what a broken connection brought of one is lost
TIMEOUT_S = 60.0  # without a byte
ATTEMPTS, WAIT_S = 5, 3.0  # broken connections in a row, without a byte in between
SPACE_LEFT = 1 << 28  # bytes that a download leaves on the disk


def find_archive(name: str) -> Archive:
    """The archive of that name.  Raises UserError, which says what to choose instead."""
    if name in ARCHIVES:
        return ARCHIVES[name]
    corpus = CORPORA.get(name)
    if corpus and corpus.manual:
        cure = f"speechgpt corpora download {name} prints the steps"
        raise UserError(f"{corpus.title} can't be fetched without an agreement: {cure}")
    choice = ", ".join(a.name for a in ARCHIVES.values() if corpus is None or a.corpus == name)
    if corpus:
        raise UserError(f"{name} comes in several archives, choose one: {choice}")
    gated = ", ".join(corpus.name for corpus in CORPORA.values() if corpus.manual)
    raise UserError(f"unknown archive {name!r}: choose {choice}; steps are printed for {gated}")


def download(
    archive: Archive, out: Path | str, keep=False, say=lambda _: None, progress=lambda *_: None
) -> Path:
    """Fetch, check and unpack `archive` into `out`; the folder that it unpacked to.

    keep: the archive itself as well.  progress: is told (bytes that are there, in all or None).
    Raises UserError: no network, a full disk, a wrong checksum, an archive that isn't safe.
    """
    out = Path(out).expanduser()
    folder, path = out / archive.folder, out / Path(archive.url).name
    if folder.is_dir():
        say(f"{folder} is there already")
        return folder
    fetch_file(archive.url, path, archive.checksum, say, progress)
    say(f"{path.name}: {_kind(archive.checksum)} is right, unpacking")
    unpack(path, out, archive.folder)
    if not keep:
        path.unlink()
    return folder


def fetch_file(
    url: str,
    path: Path,
    checksum: str | None,
    say: Callable = lambda _: None,
    progress: Callable = lambda *_: None,
) -> None:
    """Fetch `url` into `path` unless it is there.

    `checksum` is "md5:…" or "sha256:…", or None where its publisher tells none.  Raises as
    `download`.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and (checksum is None or hash_of(path, checksum) == checksum):
            return
        _fetch(url, part, say, progress)
        if checksum and (found := hash_of(part, checksum)) != checksum:
            part.unlink()
            expected, came = (text.partition(":")[2] for text in (checksum, found))
            what = f"came with {_kind(checksum)} {came}, its publisher says {expected}"
            raise UserError(f"{url} {what}: it was thrown away; fetch it again")
        os.replace(part, path)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"could not write to {path.parent}: {why}; what is there is kept") from None


def hash_of(path: Path, checksum: str) -> str:
    """The hash of a file, of the kind that a checksum is: `md5:…`, `sha256:…`."""
    kind = checksum.partition(":")[0]
    with open(path, "rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def _kind(checksum: str) -> str:
    return checksum.partition(":")[0].upper()


def _fetch(url: str, part: Path, say: Callable, progress: Callable) -> None:
    """Append to `part` until it is whole, over as many connections as it takes."""
    host, reached, failures = urlsplit(url).hostname, False, 0
    while True:
        before, reason = _size(part), "the connection ended early"
        try:
            if _fetch_rest(url, part, progress):
                return
        except requests.HTTPError as error:
            reason = f"answers {error.response.status_code} {error.response.reason}"
            if error.response.status_code < 500:
                raise UserError(f"{host} {reason} for {url}: was the archive moved?") from None
        except requests.RequestException as error:
            reason = _plainly(error)
            reached = reached or isinstance(error, requests.exceptions.ChunkedEncodingError)
            if not reached and _size(part) == before:
                why = f"no connection to {host} ({reason}): this needs the internet; without it"
                cure = f"fetch {url} elsewhere, put it into {part.parent}"
                raise UserError(f"{why}, {cure} and give the same command again") from None
        reached, failures = True, 0 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            what = f"{_size(part)} bytes are kept: the same command goes on there"
            raise UserError(f"{host} broke off {failures} times ({reason}); {what}")
        say(f"{host}: {reason} after {_size(part)} bytes, going on")
        time.sleep(WAIT_S)


def _fetch_rest(url: str, part: Path, progress: Callable) -> bool:
    """One connection: the bytes from where `part` ends.  Returns whether it is whole now."""
    have = _size(part)
    # identity: the archive's own bytes, not unpacked by a server that takes .gz for an encoding
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        sent = answer.headers.get("Content-Range", "")
        if answer.status_code == 416:  # nothing from there on
            if sent.endswith(f"/{have}"):
                return True
            part.unlink()  # it was longer than the server's
            return False
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and sent.startswith(f"bytes {have}-")
        have = have if goes_on else 0  # a server that can't resume sends all of it again
        size = int(answer.headers.get("Content-Length") or 0)
        total = have + size if size else None
        if (free := shutil.disk_usage(part.parent).free) < size + SPACE_LEFT:
            what = f"{free / 1e9:.1f} GB free, the download needs {size / 1e9:.1f} GB more"
            raise UserError(f"{part.parent} has {what}: give another folder with -o")
        with open(part, "ab" if goes_on else "wb", opener=not_through_links) as file:
            progress(have, total)
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
    return total is None or have == total


def unpack(path: Path, out: Path, folder: str) -> None:
    """Unpack `path` so that `out/folder` appears at once and whole, or not at all.

    Other files in the archive come beside it.  Links, devices and paths that leave the archive's
    folder are refused.
    """
    aside = out / f".unpacking-{path.name}"
    shutil.rmtree(aside, ignore_errors=True)  # of a program that was killed
    aside.mkdir()
    try:
        with tarfile.open(path) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
            for member in tar:
                inside = PurePosixPath(member.name)
                plain = member.isreg() or member.isdir()
                if inside.is_absolute() or ".." in inside.parts or not plain:
                    raise tarfile.TarError(f"{member.name!r} is no plain file inside its folder")
                tar.extract(member, aside)
        if not (aside / folder).is_dir():
            found = ", ".join(sorted(os.listdir(aside))[:5]) or "nothing"
            raise UserError(f"{path} holds {found}; expected {folder}: is it another archive?")
        (out / folder).parent.mkdir(parents=True, exist_ok=True)
        for file in sorted(aside.rglob("*")):
            if file.is_file() and not file.is_relative_to(aside / folder):
                target = out / file.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        replace(aside / folder, out / folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        cure = "nothing was changed; is the disk full? if not, delete it and download it again"
        raise UserError(f"{path} can't be unpacked ({error}): {cure}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _plainly(error: Exception) -> str:
    """The last words of a chain of wrapped errors: what happened, without addresses of objects."""
    text = str(error)
    if found := re.search(r"(?:\[Errno -?\d+\]|Errno -?\d+\)?:?) ([A-Za-z][^'\")\]]*)", text):
        return found[1].strip()
    known = {"timed out": "no answer in time", "IncompleteRead": "the connection ended early"}
    known |= {"certificate": "bad certificate"}
    return next((known[word] for word in known if word in text), type(error).__name__)
