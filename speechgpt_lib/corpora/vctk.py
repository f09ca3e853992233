"""VCTK: `wav48_silence_trimmed/SPEAKER/*_mic1.flac` (0.92; or `wav48/SPEAKER/*.wav`, 0.80) and `txt/SPEAKER/*.txt` → segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.catalogue import chosen_splits, files, folders, require_corpus
from speechgpt_lib.corpora.segments import Segment, Skipped

RATE, SPLIT = 48_000, "train"
LAYOUTS = (
    ("wav48_silence_trimmed", "_mic1.flac"),
    ("wav48", ".wav"),
)  # of two microphones the first, which every sentence has


def rows(root: Path | str, split: str | Sequence[str] | None = None) -> Iterator[Segment | Skipped]:
    """Utterances by speaker and name, one speaker in memory at a time.  There is one split, `train`.

    A sound file without text (speaker p315 has none) is given with text None.
    """
    place = require_corpus(root, "vctk")
    chosen_splits(split, [SPLIT], place)
    folder, suffix = next(layout for layout in LAYOUTS if (place / layout[0]).is_dir())
    for speaker in folders(place / folder):
        for name in files(place / folder / speaker, suffix):
            id, path = name.removesuffix(suffix), f"{folder}/{speaker}/{name}"
            words = place / "txt" / speaker / f"{id}.txt"
            try:
                text = (
                    " ".join(words.read_text(encoding="utf-8").split()) if words.is_file() else None
                )
            except UnicodeDecodeError:
                yield Skipped(path, id, "bad_row", f"txt/{speaker}/{id}.txt is not UTF-8")
                continue
            yield Segment(id, path, 0.0, None, RATE, text or None, speaker, "en", SPLIT)
