"""VCTK: sounds of 110 speakers and a text file for each → segments.

0.92   wav48_silence_trimmed/SPEAKER/*_mic1.flac, txt/SPEAKER/*.txt
0.80   wav48/SPEAKER/*.wav, txt/SPEAKER/*.txt
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.catalogue import require_corpus
from speechgpt_lib.corpora.lists import chosen_splits, files, folders
from speechgpt_lib.corpora.segments import Row, Segment, Skipped

RATE, SPLIT = 48_000, "train"
# Of two microphones the first, which every sentence has.
LAYOUTS = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))


def rows(root: Path | str, split: str | Sequence[str] | None = None) -> Iterator[Row]:
    """Utterances by speaker and name, one speaker in memory at a time.  The one split is `train`.

    A sound file without text (speaker p315 has none) is given with text None.
    """
    place = require_corpus(root, "vctk")
    chosen_splits(split, [SPLIT], place)
    folder, suffix = next(layout for layout in LAYOUTS if (place / layout[0]).is_dir())
    for speaker in folders(place / folder):
        for name in files(place / folder / speaker, suffix):
            id, path = name.removesuffix(suffix), f"{folder}/{speaker}/{name}"
            words, text = place / "txt" / speaker / f"{id}.txt", None
            try:
                if words.is_file():
                    text = " ".join(words.read_text(encoding="utf-8").split()) or None
            except UnicodeDecodeError:
                yield Skipped(path, id, "bad_row", f"txt/{speaker}/{id}.txt is not UTF-8")
                continue
            yield Segment(id, path, 0.0, None, RATE, text, speaker, "en", SPLIT)
