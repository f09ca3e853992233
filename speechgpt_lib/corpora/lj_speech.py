"""LJSpeech: `metadata.csv` and `wavs/*.wav` at 22.05 kHz → segments of one speaker.

A line of the list is name | text | text with numbers written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.catalogue import require_corpus
from speechgpt_lib.corpora.lists import chosen_splits, files, transcripts
from speechgpt_lib.corpora.segments import Row, Segment, Skipped

RATE, SPEAKER, SPLIT = 22_050, "LJ", "train"


def rows(root: Path | str, split: str | Sequence[str] | None = None) -> Iterator[Row]:
    """Utterances in the order of their names, numbers written out.  The one split is `train`."""
    place = require_corpus(root, "lj_speech")
    chosen_splits(split, [SPLIT], place)
    sounds = (name.removesuffix(".wav") for name in files(place / "wavs", ".wav"))
    for found in transcripts(sounds, {"metadata.csv": place / "metadata.csv"}, _parse):
        if isinstance(found, Skipped):
            yield found
            continue
        id, text = found
        yield Segment(id, f"wavs/{id}.wav", 0.0, None, RATE, text, SPEAKER, "en", SPLIT)


def _parse(line: str) -> tuple[str, str]:
    id, *texts = map(str.strip, line.split("|"))
    return id, next(filter(None, (*texts[-1:], *texts[:1])), "")
