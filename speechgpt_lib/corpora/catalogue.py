"""The corpora and archives of `catalogue.yaml`, which one a folder holds, and what lies in it.

Folders and files come in a fixed order, without hidden ones (macOS leaves `._name` beside `name`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import open_text
from speechgpt_lib.runs.stores import entries, located

LONGEST_LINE = 1 << 20
Names = str | Sequence[str] | None  # one, several, or all


class Published(NamedTuple):
    """A corpus as published; `manual`: how to get one that asks for an agreement."""

    name: str
    title: str
    hours: str
    licence: str
    layout: str
    manual: str | None = None


class Archive(NamedTuple):
    """An archive that anyone may fetch; `folder` is what it unpacks to in the download folder."""

    name: str
    corpus: str
    url: str
    checksum: str  # md5:… or sha256:…
    folder: str
    hours: float
    size: str

    @property
    def is_whole(self) -> bool:
        """Whether it holds its whole corpus, not one of the splits."""
        return sum(other.corpus == self.corpus for other in ARCHIVES.values()) == 1


_LISTED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CORPORA = {name: Published(name, **facts) for name, facts in _LISTED["corpora"].items()}
ARCHIVES = {facts["name"]: Archive(**facts) for facts in _LISTED["archives"]}


def require_corpus(root: Path | str, name: str) -> Path:
    """`root` as a path.  Raises UserError where the corpus `name` isn't: what is there instead."""
    root, wanted = located(root), CORPORA[name]
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give the folder that holds {wanted.layout}")
    if _holds(root, wanted):
        return root
    inside = sorted(name for name, _ in entries(root))
    found = ", ".join(inside[:5]) + f" and {len(inside) - 5} more" * (len(inside) > 5)
    what = f"found {found or 'nothing'}; expected {wanted.layout}{_hint(root, wanted)}"
    raise UserError(f"{root} is not {wanted.title}: {what}")


def _hint(root: Path, wanted: Published) -> str:
    others = [corpus for corpus in CORPORA.values() if corpus is not wanted]
    above = root.resolve().parent
    near = [*(root / name for name in folders(root)[:20]), above, above.parent]
    # If it isn't another corpus, most often the folder above or below was meant.
    tries = [(root, corpus) for corpus in others]
    for folder, corpus in tries + [(place, c) for c in (wanted, *others) for place in near]:
        if _holds(folder, corpus):
            cure = ["give that folder"] * (folder is not root)
            cure += [f"read it as {corpus.name}"] * (corpus is not wanted)
            what = "It" if folder is root else folder
            return f". {what} looks like {corpus.title}: {' and '.join(cure)}"
    return ""


def _holds(root: Path, corpus: Published) -> bool:
    try:
        return bool(_IS_HERE[corpus.name](root))
    except OSError:  # not ours to read
        return False


def _has_chapters(root: Path, *suffixes: str) -> bool:
    """Whether one of the first chapters has files of each suffix."""
    first = islice(chapters(root, subset_folders(root)), 20)
    return any(all(files(root / name, suffix) for suffix in suffixes) for _, _, name in first)


def folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted."""
    return sorted(name for name, inner in entries(root) if inner and not name.startswith("."))


def files(root: Path, suffix: str) -> list[str]:
    """Names of the files in `root` that end in `suffix`, sorted."""
    found = (name for name, inner in entries(root) if not inner)
    return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))


def subset_folders(root: Path) -> list[str]:
    """Folders that hold speakers (their names are numbers): subsets of LibriSpeech, Libri-Light."""
    return [name for name in folders(root) if any(map(str.isdigit, folders(root / name)))]


def chapters(root: Path, subsets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(subset, speaker, subset/speaker/chapter) in order, for folders of these three levels."""
    for subset in subsets:
        for speaker in filter(str.isdigit, folders(root / subset)):
            for chapter in folders(root / subset / speaker):
                yield subset, speaker, f"{subset}/{speaker}/{chapter}"


def language_folders(root: Path) -> list[str]:
    """Folders of one language of Common Voice, relative to `root`; `.` where it is one itself."""
    there = (name for name in [".", *folders(root)] if (root / name / "clips").is_dir())
    return [name for name in there if files(root / name, ".tsv")]


def chosen_splits(asked: Names, there: Sequence[str], where: Path) -> list[str]:
    """The splits asked for in the order of `there`, all for None.  Raises UserError for others."""
    wanted = {asked} if isinstance(asked, str) else set(there if asked is None else asked)
    if unknown := ", ".join(sorted(wanted - set(there))):
        raise UserError(f"no split {unknown} in {where}: there are {', '.join(there) or 'none'}")
    return [name for name in there if name in wanted]


def text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Number and text of each line of a list, as a stream; None for one that is not UTF-8.

    Raises UserError for one of more than `LONGEST_LINE` bytes.
    """
    with reading(path), open_text(path) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}, line {number} is longer than 1 MB: is it such a list?")
            try:  # a list may be several, joined, each with its byte order mark
                yield number, line.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, None


_IS_HERE = {
    "librispeech": lambda root: _has_chapters(root, ".trans.txt"),
    "common_voice": language_folders,
    "gigaspeech": lambda root: (root / "GigaSpeech.json").is_file(),
    "libri_light": lambda root: _has_chapters(root, ".json", ".flac"),
    "lj_speech": lambda root: (root / "metadata.csv").is_file() and (root / "wavs").is_dir(),
    "vctk": lambda root: any((root / name).is_dir() for name in ("wav48_silence_trimmed", "wav48")),
}
