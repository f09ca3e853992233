"""LJSpeech: `metadata.csv` (name | text | text with numbers written out) and `wavs/*.wav` at 22.05 kHz → segments of one speaker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.catalogue import chosen_splits, files, require_corpus
from speechgpt_lib.corpora.segments import Segment, Skipped

RATE, SPEAKER, SPLIT = 22_050, "LJ", "train"


def rows(root: Path | str, split: str | Sequence[str] | None = None) -> Iterator[Segment | Skipped]:
    """Utterances in the order of their names; text with numbers written out.  There is one split, `train`.

    A line without a sound file is given all the same (its check finds it `missing`), a sound file without a line has text None.
    """
    place = require_corpus(root, "lj_speech")
    chosen_splits(split, [SPLIT], place)
    found: dict[str, str | None] = {
        name.removesuffix(".wav"): None for name in files(place / "wavs", ".wav")
    }
    for number, line in enumerate((place / "metadata.csv").read_bytes().split(b"\n"), 1):
        try:
            id, _, texts = line.decode("utf-8").rstrip("\r").partition("|")
        except UnicodeDecodeError:
            yield Skipped("metadata.csv", f"line {number}", "bad_row", "not UTF-8")
            continue
        text = texts.rpartition("|")[2].strip() or texts.partition("|")[0].strip()
        if id.strip() and text:
            found[id.strip()] = text
        elif id.strip():
            yield Skipped("metadata.csv", id.strip(), "bad_row", f"line {number} has no text")
            found.pop(id.strip(), None)
    for id, text in sorted(found.items()):
        yield Segment(id, f"wavs/{id}.wav", 0.0, None, RATE, text, SPEAKER, "en", SPLIT)
