"""A stretch of a sound file → float32 samples at 16 kHz, or `BadAudio` with a reason.

What is wrong is said in one word, so that the words can be counted:

    missing      the file is not there, or can't be opened
    empty        it has 0 bytes
    not_audio    it does not begin like any sound file (an error page saved as mp3)
    truncated    it holds fewer samples than its header, or the segment's end, claims
    too_long     the segment is longer than the limit
    too_short    it has fewer than 400 samples at 16 kHz
    not_finite   it has samples that are NaN or infinite *
    silent       it stays below 1e-4 of full scale *
    bad_row      a line in the corpus' own lists can't be understood (said by the readers)
    not_speech   it is marked as noise, music or silence: no fault, and not quarantined (readers)

    * known by decoding only, as is `truncated` where the damage is inside the file
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.sound_files import (
    BadAudio,
    Header,
    decode,
    inspect,
    refuse_not_finite,
    refuse_short,
    to_16_khz,
)
from speechgpt_lib.rates import SAMPLE_RATE

SILENCE = 1e-4  # of full scale: 16-bit dither stays below
MAXIMUM_S = 7200.0  # longer than any file of these corpora, 460 MB as float32 at 16 kHz
SLACK_S = 0.05  # by which a list's end may lie beyond the file's: lists round, and codecs pad


@dataclass(frozen=True, slots=True)
class Segment:
    """One utterance, a stretch of a sound file.

    What the corpus promises; `check_segment` fills in what the decoder really gives (a rate of
    often 48 kHz for Opus, whatever was recorded).
    """

    id: str
    path: str  # relative to the corpus' root, with `/` between folders
    start: float  # seconds
    end: float | None  # seconds; None for a whole file of which nothing is known yet
    sample_rate: int  # Hz
    text: str | None  # None where there is no transcript
    speaker: str
    language: str
    split: str

    @property
    def seconds(self) -> float | None:
        """How long it is; None while the end is unknown."""
        return None if self.end is None else self.end - self.start


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that gives no utterance."""

    path: str
    id: str
    reason: str  # a word of the list above
    detail: str  # what was found


Row = Segment | Skipped


def read_segment(root: Path | str, segment: Segment, maximum_s: float = MAXIMUM_S) -> np.ndarray:
    """The sound of `segment` as float32 (n,) at 16 kHz: only its own stretch of the file is read.

    Raises BadAudio with the reason in one word.
    """
    path = Path(root) / segment.path
    header = inspect(path)
    start, stop = _frames(path, header, segment, maximum_s)
    wave = to_16_khz(_decode_checked(path, header, start, stop), header.rate)
    refuse_short(path, len(wave))
    return wave


def read_part(root: Path | str, segment: Segment, start: int, count: int) -> np.ndarray:
    """Samples `start` to `start + count` at 16 kHz of a segment's sound, float32 (count,).

    Where the file has another rate, what lies up to 0.1 s around is resampled with them, so that
    they are (to about 1e-4) those of `read_segment`.  Behind the end they are 0.  Raises BadAudio.
    """
    path = Path(root) / segment.path
    header = inspect(path)
    rate, first = header.rate, round(segment.start * header.rate)
    margin = 0 if rate == SAMPLE_RATE else SAMPLE_RATE // 10
    grid = SAMPLE_RATE // math.gcd(SAMPLE_RATE, rate)  # where samples of both rates fall together
    before = max(0, start - margin) // grid * grid
    last = first + math.ceil((start + count + margin) * rate / SAMPLE_RATE)
    end = header.frames if segment.end is None else min(header.frames, round(segment.end * rate))
    first += before * rate // SAMPLE_RATE
    wave = to_16_khz(decode(path, header, first, max(first, min(last, end))), rate)
    wave = wave[start - before : start - before + count]
    return np.pad(wave, (0, count - len(wave)))


def check_segment(
    root: Path | str, segment: Segment, maximum_s: float = MAXIMUM_S, decoded: bool = False
) -> Segment:
    """`segment` with `end` and `sample_rate` as the file has them.  Raises BadAudio.

    Looks at the file's header and tail only, unless `decoded`: then also at every sample.
    """
    path = Path(root) / segment.path
    header = inspect(path)
    start, stop = _frames(path, header, segment, maximum_s)
    if decoded or header.damage:  # a damaged file may still hold this segment
        wave = _decode_checked(path, header, start, stop)
        refuse_short(path, len(to_16_khz(wave, header.rate)))
        stop = start + len(wave)
    end = stop / header.rate if segment.end is None else segment.end
    return replace(segment, end=end, sample_rate=header.rate)


def _frames(path: Path, header: Header, segment: Segment, maximum_s: float) -> tuple[int, int]:
    """First frame and the frame after the last, at the file's rate, checked with the header."""
    if segment.end is None and header.damage:
        raise BadAudio("truncated", path, header.damage)
    rate = header.rate
    start = round(segment.start * rate)
    claimed = header.frames if segment.end is None else round(segment.end * rate)
    if claimed - start > maximum_s * rate:
        what = f"{(claimed - start) / rate:.0f} s, the limit is {maximum_s:.0f} s"
        raise BadAudio("too_long", path, what)
    short_by = claimed - header.frames
    if not 0 <= start < header.frames or short_by > SLACK_S * rate and header.counted:
        stretch = f"segment {segment.start:g} to {segment.end} s"
        raise BadAudio("truncated", path, f"{stretch} of a file of {header.frames / rate:.2f} s")
    stop = min(claimed, header.frames)
    refuse_short(path, (stop - start) * SAMPLE_RATE / rate)
    return start, stop


def _decode_checked(path: Path, header: Header, start: int, stop: int) -> np.ndarray:
    wave = decode(path, header, start, stop)
    if header.counted and len(wave) < stop - start - SLACK_S * header.rate or not len(wave):
        found, claimed = len(wave) / header.rate, (stop - start) / header.rate
        raise BadAudio("truncated", path, f"{found:.2f} s could be decoded of {claimed:.2f} s")
    refuse_not_finite(path, wave)
    if (peak := np.abs(wave).max()) < SILENCE:
        raise BadAudio("silent", path, f"no sample above {peak:.1g} of full scale")
    return wave
