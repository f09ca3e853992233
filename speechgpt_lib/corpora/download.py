"""An archive's name → its folder on disk: fetched with resume (requests), checked against its MD5 (pooch), unpacked atomically.

What arrived lies in `.NAME.part` until the whole is there, so a broken connection or a stopped program costs nothing: the next call
asks the server for the rest only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pooch
import requests

from speechgpt_lib.corpora.archives import ARCHIVES, Archive
from speechgpt_lib.corpora.catalogue import CORPORA
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import replace

CHUNK = 1 << 20
TIMEOUT_S = 60.0  # without a byte
SPACE_LEFT = 1 << 28  # bytes that a download leaves on the disk

Progress = Callable[[int, int | None], None]


def find_archive(name: str) -> Archive:
    if name in ARCHIVES:
        return ARCHIVES[name]
    corpus = CORPORA.get(name)
    if corpus and corpus.manual:
        raise UserError(
            f"{corpus.title} can't be fetched without an agreement: speechgpt corpora download {name} prints the steps"
        )
    names = [a.name for a in ARCHIVES.values() if corpus is None or a.corpus == name]
    raise UserError(
        f"{name} comes in several archives, choose one: {', '.join(names)}"
        if corpus
        else _unknown(name, names)
    )


def download(
    archive: Archive,
    out: Path | str,
    keep_archive: bool = False,
    attempts: int = 5,
    wait_s: float = 3.0,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Fetch, check and unpack `archive` into the folder `out`; returns the folder it unpacked to, such as `out/LibriSpeech/dev-clean`.

    Args:
        keep_archive: leave the .tar.gz beside it.
        attempts: broken connections in a row, without a byte in between, that are put up with; `wait_s` seconds between them.
        progress: is told (bytes that are there, bytes in all or None).

    Raises:
        UserError: no network, an error of the server, a full disk, a wrong checksum, an archive that can't be unpacked safely.
    """
    out = Path(out).expanduser()
    folder = out / archive.folder
    if folder.is_dir():
        say(f"{folder} is there already")
        return folder
    out.mkdir(parents=True, exist_ok=True)
    path, part = out / archive.file, out / f".{archive.file}.part"

    def fetch(url: str, target: str, _: object) -> None:
        """What pooch calls to fill `target`, which it then checks and moves to `path`."""
        _fetch(url, part, attempts, wait_s, say, progress)
        os.unlink(target)
        try:
            os.link(
                part, target
            )  # a second name: if the program is killed while pooch checks it, nothing is lost and nothing doubled
        except OSError:
            os.replace(part, target)

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            archive.url, f"md5:{archive.md5}", fname=path.name, path=out, downloader=fetch
        )
    except ValueError as error:  # pooch's word for a wrong checksum
        part.unlink(missing_ok=True)
        found = re.findall(r"\b[0-9a-f]{32}\b", str(error))
        was = next((sum for sum in found if sum != archive.md5), "another")
        raise UserError(
            f"{archive.url} came with MD5 {was}, its publisher says {archive.md5}: it was thrown away; fetch it again, or from elsewhere"
        ) from None
    except OSError as error:
        raise UserError(
            f"could not write to {out}: {error.strerror or error}; what is there is kept"
        ) from None
    part.unlink(missing_ok=True)
    say(f"{path.name}: MD5 is right, unpacking")
    unpack(path, out, archive.folder)
    if not keep_archive:
        path.unlink()
    return folder


def _fetch(
    url: str,
    part: Path,
    attempts: int,
    wait_s: float,
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    """Append to `part` until it is whole, over as many connections as it takes."""
    host, reached, failures = urlsplit(url).hostname, False, 0
    while True:
        before = _size(part)
        try:
            if _fetch_rest(url, part, progress):
                return
            reason = "the connection ended early"
        except requests.HTTPError as error:
            status = f"{error.response.status_code} {error.response.reason}"
            if error.response.status_code < 500:
                raise UserError(
                    f"{host} answers {status} for {url}: was the archive moved?"
                ) from None
            reason = f"it answers {status}"
        except requests.RequestException as error:
            if not (reached or _size(part) > before):
                raise UserError(
                    f"no connection to {host} ({_plainly(error)}): this needs the internet; without it, fetch {url} elsewhere, "
                    f"put it into {part.parent} and give the same command again"
                ) from None
            reason = _plainly(error)
        reached, failures = True, 0 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise UserError(
                f"{host} broke off {failures} times ({reason}); {_size(part)} bytes are kept: the same command goes on there"
            )
        say(f"{host}: {reason} after {_size(part)} bytes, going on")
        time.sleep(wait_s)


def _fetch_rest(url: str, part: Path, progress: Progress) -> bool:
    """One connection: the bytes from where `part` ends.  Returns whether it is whole now."""
    have = _size(part)
    # identity: the bytes of the archive itself, not unpacked on the way by a server that takes .gz for an encoding
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if (
            answer.status_code == 416
        ):  # nothing from there on: it is whole, or was longer than the server's
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return True
            part.unlink()
            return False
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        have = have if goes_on else 0  # a server that can't resume sends all of it again
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        _require_space(part.parent, total - have if total else 0)
        with open(part, "ab" if goes_on else "wb") as file:
            progress(have, total)
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
    return total is None or have == total


def unpack(path: Path, out: Path, folder: str) -> None:
    """Unpack `path` so that `out/folder` appears at once and whole, or not at all; other files in the archive come beside it."""
    aside = out / f".unpacking-{path.name}"
    shutil.rmtree(aside, ignore_errors=True)  # of a program that was killed
    aside.mkdir()
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                _extract(tar, member, aside)
        if not (aside / folder).is_dir():
            raise UserError(
                f"{path} holds {', '.join(sorted(os.listdir(aside))[:5]) or 'nothing'}; expected {folder}: is it another archive?"
            )
        (out / folder).parent.mkdir(parents=True, exist_ok=True)
        for file in sorted(
            p for p in aside.rglob("*") if p.is_file() and not p.is_relative_to(aside / folder)
        ):
            target = out / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        replace(aside / folder, out / folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} can't be unpacked ({error}): nothing was changed; delete it and download it again"
        ) from None
    except OSError as error:
        raise UserError(
            f"could not unpack {path}: {error.strerror or error}; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """No file outside `folder`, no device, no link out of it, no odd permissions, whatever the archive says."""
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, folder, filter="data")
        return
    path = PurePosixPath(member.name)  # Python before 3.11.4
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise tarfile.TarError(f"{member.name!r} is no plain file inside the archive's folder")
    tar.extract(member, folder)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPACE_LEFT > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, the download needs {needed / 1e9:.1f} GB more: give another folder with -o"
        )


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _plainly(error: Exception) -> str:
    """The last words of a chain of wrapped errors: what really happened, without addresses of objects."""
    text = str(error)
    found = re.search(r"(?:\[Errno -?\d+\]|Errno -?\d+\)?:?) ([A-Za-z][^'\")\]]*)", text)
    if found:
        return found[1].strip()
    for word, plain in (
        ("timed out", "no answer in time"),
        ("IncompleteRead", "the connection ended early"),
        ("certificate", "bad certificate"),
    ):
        if word in text:
            return plain
    return type(error).__name__


def _unknown(name: str, names: list[str]) -> str:
    gated = [corpus.name for corpus in CORPORA.values() if corpus.manual]
    return f"unknown archive {name!r}: choose {', '.join(names)}; steps are printed for {', '.join(gated)}"
