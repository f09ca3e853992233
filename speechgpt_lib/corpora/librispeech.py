"""LibriSpeech: `subset/speaker/chapter/*.flac` and the chapter's `*.trans.txt` → segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechgpt_lib.corpora.catalogue import require_corpus
from speechgpt_lib.corpora.lists import (
    Names,
    chapters,
    chosen_splits,
    files,
    subset_folders,
    transcripts,
)
from speechgpt_lib.corpora.segments import Row, Segment, Skipped

RATE = 16_000  # Hz


def rows(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances sorted by subset, speaker, chapter and name, one chapter in memory at a time.

    split: subsets such as dev-clean; None is all that are there.
    `root` may also be the folder that holds `LibriSpeech`, as the archives unpack.
    """
    root = Path(root).expanduser()
    inner = "LibriSpeech/" if (root / "LibriSpeech").is_dir() and not subset_folders(root) else ""
    place = require_corpus(root / inner, "librispeech")
    subsets = chosen_splits(split, subset_folders(place), place)
    for subset, speaker, chapter in chapters(place, subsets):
        folder, path = place / chapter, f"{inner}{chapter}"
        lists = {f"{path}/{name}": folder / name for name in files(folder, ".trans.txt")}
        sounds = (name.removesuffix(".flac") for name in files(folder, ".flac"))
        for found in transcripts(sounds, lists, _parse):
            if isinstance(found, Skipped):
                yield found
                continue
            id, text = found
            file = f"{path}/{id}.flac"
            yield Segment(id, file, 0.0, None, RATE, text, speaker, "en", subset)


def _parse(line: str) -> tuple[str, str]:
    id, _, text = line.strip().partition(" ")
    return id, text.strip()
