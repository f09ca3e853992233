"""LJSpeech and VCTK, which were read for speech synthesis → segments.

LJSpeech   metadata.csv (name | text | text with numbers written out), wavs/*.wav at 22.05 kHz
VCTK 0.92  wav48_silence_trimmed/SPEAKER/*_mic1.flac, txt/SPEAKER/*.txt
VCTK 0.80  wav48/SPEAKER/*.wav, txt/SPEAKER/*.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechgpt_lib.corpora.catalogue import require_corpus
from speechgpt_lib.corpora.lists import Names, chosen_splits, files, folders, transcripts
from speechgpt_lib.corpora.segments import Row, Segment, Skipped

SPLIT = "train"  # the only one
# Of VCTK's two microphones the first, which every sentence has.
VCTK_LAYOUTS = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))


def lj_speech(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances in the order of their names, numbers written out."""
    place = require_corpus(root, "lj_speech")
    chosen_splits(split, [SPLIT], place)
    sounds = (name.removesuffix(".wav") for name in files(place / "wavs", ".wav"))
    for found in transcripts(sounds, {"metadata.csv": place / "metadata.csv"}, _parse):
        if isinstance(found, Skipped):
            yield found
        else:
            id, text = found
            yield Segment(id, f"wavs/{id}.wav", 0.0, None, 22_050, text, "LJ", "en", SPLIT)


def vctk(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances by speaker and name, one speaker in memory at a time.

    A sound file without text (speaker p315 has none) is given with text None.
    """
    place = require_corpus(root, "vctk")
    chosen_splits(split, [SPLIT], place)
    folder, suffix = next(layout for layout in VCTK_LAYOUTS if (place / layout[0]).is_dir())
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
            yield Segment(id, path, 0.0, None, 48_000, text, speaker, "en", SPLIT)


def _parse(line: str) -> tuple[str, str]:
    id, *texts = map(str.strip, line.split("|"))
    return id, next(filter(None, (*texts[-1:], *texts[:1])), "")
