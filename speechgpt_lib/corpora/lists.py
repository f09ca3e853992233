"""What readers share: folders and files in a fixed order, lists of transcripts, chosen splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.segments import Skipped
from speechgpt_lib.errors import UserError

Names = str | Sequence[str] | None  # one, several, or all
Parse = Callable[[str], tuple[str, str]]  # a line → id and text


def folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; hidden ones don't count."""
    found = (entry.name for entry in os.scandir(root) if entry.is_dir())
    return sorted(name for name in found if not name.startswith("."))


def files(root: Path, suffix: str) -> list[str]:
    """Names of the files in `root` that end in `suffix`, sorted.

    Hidden ones don't count: macOS leaves `._name` beside `name`.
    """
    found = (entry.name for entry in os.scandir(root) if not entry.is_dir())
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


def chosen_splits(asked: Names, there: Sequence[str], where: Path) -> list[str]:
    """The splits asked for in the order of `there`, all for None.

    Raises UserError, which names those that are there.
    """
    if asked is None:
        return list(there)
    wanted = {asked} if isinstance(asked, str) else set(asked)
    if unknown := ", ".join(sorted(wanted - set(there))):
        raise UserError(f"no split {unknown} in {where}: there are {', '.join(there) or 'none'}")
    return [name for name in there if name in wanted]


def text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Number and text of each line of a list, as a stream; None for one that is not UTF-8."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, None


def transcripts(
    recordings: Iterable[str], lists: dict[str, Path], parse: Parse
) -> Iterator[Skipped | tuple[str, str | None]]:
    """(id, text) for each recording or line of `lists`, sorted by id; text None without a line.

    A line without a recording is given all the same: its check finds the file `missing`.
    lists: name in the corpus → path.
    Lines that are not UTF-8 or have no text come as Skipped, before the others.
    """
    found: dict[str, str | None] = dict.fromkeys(recordings)
    for name, path in lists.items():
        for number, line in text_lines(path):
            id, text = ("", "") if line is None else parse(line)
            if line is None:
                yield Skipped(name, f"line {number}", "bad_row", "not UTF-8")
            elif id and not text:
                yield Skipped(name, id, "bad_row", f"line {number} has no text")
                found.pop(id, None)
            elif id:
                found[id] = text
    yield from sorted(found.items())
