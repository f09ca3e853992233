"""The corpora and archives listed in `catalogue.yaml`, and which corpus a folder holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from speechgpt_lib.corpora.lists import chapters, files, folders, subset_folders
from speechgpt_lib.errors import UserError


@dataclass(frozen=True)
class Published:
    """A corpus as published; `manual`: how to get one that asks for an agreement."""

    name: str
    title: str
    hours: str
    licence: str
    layout: str
    is_here: Callable[[Path], bool]
    manual: str | None = None


@dataclass(frozen=True)
class Archive:
    """An archive that anyone may fetch; `folder` is what it unpacks to in the download folder."""

    name: str
    corpus: str
    url: str
    md5: str
    folder: str
    hours: float
    size: str

    @property
    def file(self) -> str:
        """The file's name, the last part of its address."""
        return self.url.rpartition("/")[2]


def find_corpus(name: str) -> Published:
    """The corpus of that name.  Raises UserError, which names all."""
    if name not in CORPORA:
        known = ", ".join(CORPORA)
        raise UserError(f"unknown corpus {name!r}: choose {known} (speechgpt corpora list)")
    return CORPORA[name]


def require_corpus(root: Path | str, name: str) -> Path:
    """`root` as a path, if the corpus called `name` is there.

    Raises UserError, which says what is there instead, and what to try.
    """
    root, corpus = Path(root).expanduser(), find_corpus(name)
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give the folder that holds {corpus.layout}")
    if corpus.is_here(root):
        return root
    inside = sorted(os.listdir(root))
    found = ", ".join(inside[:5]) + f" and {len(inside) - 5} more" * (len(inside) > 5)
    what = f"found {found or 'nothing'}; expected {corpus.layout}{_hint(root, corpus)}"
    raise UserError(f"{root} is not {corpus.title}: {what}")


def language_folders(root: Path) -> list[str]:
    """Folders of one language of Common Voice, relative to `root`; `.` where it is one itself."""
    there = (name for name in [".", *folders(root)] if (root / name / "clips").is_dir())
    return [name for name in there if files(root / name, ".tsv")]


def _has_chapters(root: Path, *suffixes: str) -> bool:
    """Whether one of the first chapters has files of each suffix."""
    first = islice(chapters(root, subset_folders(root)), 20)
    return any(all(files(root / name, suffix) for suffix in suffixes) for _, _, name in first)


def _hint(root: Path, wanted: Published) -> str:
    others = [corpus for corpus in CORPORA.values() if corpus is not wanted]
    for other in others:
        if _holds(root, other):
            return f". It looks like {other.title}: read it as {other.name}"
    # Most often the folder above or below was meant.
    above = root.resolve().parent
    near = [*(root / name for name in folders(root)[:20]), above, above.parent]
    for corpus in (wanted, *others):
        if folder := next((folder for folder in near if _holds(folder, corpus)), None):
            also = "" if corpus is wanted else f" and read it as {corpus.name}"
            return f". {folder} looks like {corpus.title}: give that folder{also}"
    return ""


def _holds(folder: Path, corpus: Published) -> bool:
    try:
        return corpus.is_here(folder)
    except OSError:  # not ours to read
        return False


def _published(name: str, manual: Sequence[str] = (), **facts: str) -> Published:
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(manual, 1))
    return Published(name, is_here=_IS_HERE[name], manual=steps or None, **facts)


def _archive(group: dict, part: str, md5: str, hours: float, size: str) -> Archive:
    name, url, folder = (group[key].format(part) for key in ("name", "url", "folder"))
    return Archive(name, group["corpus"], url, md5, folder, hours, size)


_IS_HERE: dict[str, Callable[[Path], bool]] = {
    "librispeech": lambda root: _has_chapters(root, ".trans.txt"),
    "common_voice": lambda root: bool(language_folders(root)),
    "gigaspeech": lambda root: (root / "GigaSpeech.json").is_file(),
    "libri_light": lambda root: _has_chapters(root, ".json", ".flac"),
    "lj_speech": lambda root: (root / "metadata.csv").is_file() and (root / "wavs").is_dir(),
    "vctk": lambda root: any((root / name).is_dir() for name in ("wav48_silence_trimmed", "wav48")),
}
_LISTED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CORPORA = {name: _published(name, **facts) for name, facts in _LISTED["corpora"].items()}
_ALL = [_archive(group, *row) for group in _LISTED["archives"] for row in group["files"]]
ARCHIVES = {archive.name: archive for archive in _ALL}
