"""LibriSpeech: `subset/speaker/chapter/*.flac` and the chapter's `*.trans.txt` → segments, one chapter in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.catalogue import (
    chosen_splits,
    files,
    folders,
    require_corpus,
    subset_folders,
)
from speechgpt_lib.corpora.segments import Segment, Skipped

RATE = 16_000


def rows(root: Path | str, split: str | Sequence[str] | None = None) -> Iterator[Segment | Skipped]:
    """Utterances of the subsets in `split` (such as dev-clean; None is all that are there), sorted by subset, speaker, chapter, name.

    A line of text without a sound file is given all the same (its check finds it `missing`), a sound file without text has text None.
    `root` may also be the folder that holds `LibriSpeech`, as the archives unpack.
    """
    root = Path(root).expanduser()
    inner = "LibriSpeech/" if (root / "LibriSpeech").is_dir() and not subset_folders(root) else ""
    place = require_corpus(root / inner, "librispeech")
    for subset in chosen_splits(split, subset_folders(place), place):
        for speaker in filter(str.isdigit, folders(place / subset)):
            for chapter in folders(place / subset / speaker):
                folder = f"{subset}/{speaker}/{chapter}"
                yield from _chapter(place, inner, folder, subset, speaker)


def iterate(root: Path | str, split: str | Sequence[str] | None = None) -> Iterator[Segment]:
    """`rows` without those that give no utterance."""
    return (row for row in rows(root, split) if isinstance(row, Segment))


def _chapter(
    place: Path, inner: str, folder: str, subset: str, speaker: str
) -> Iterator[Segment | Skipped]:
    found: dict[str, str | None] = {
        name.removesuffix(".flac"): None for name in files(place / folder, ".flac")
    }
    for name in files(place / folder, ".trans.txt"):
        for number, line in enumerate((place / folder / name).read_bytes().split(b"\n"), 1):
            try:
                id, _, text = line.decode("utf-8").strip().partition(" ")
            except UnicodeDecodeError:
                yield Skipped(f"{inner}{folder}/{name}", f"line {number}", "bad_row", "not UTF-8")
                continue
            if id and not text.strip():
                yield Skipped(
                    f"{inner}{folder}/{name}", id, "bad_row", f"line {number} has no text"
                )
                found.pop(id, None)
            elif id:
                found[id] = text.strip()
    for id, text in sorted(found.items()):
        yield Segment(
            id, f"{inner}{folder}/{id}.flac", 0.0, None, RATE, text, speaker, "en", subset
        )
