"""An utterance, which may be a stretch of a sound file → float32 samples at 16 kHz, or `BadAudio`.

What is wrong is said in one word, so that the words can be counted; docs/corpora-and-units.md
explains them.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speechgpt_lib.corpora import audio
from speechgpt_lib.corpora.audio import BadAudio, Header, inspect, refuse_short, to_16_khz
from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.rates import SAMPLE_RATE

SILENCE = 1e-4  # of full scale: 16-bit dither stays below
MAXIMUM_S = 7200.0  # longer than any file of these corpora, 460 MB as float32 at 16 kHz
SLACK_S = 0.05  # by which a list's end may lie beyond the file's: lists round, and codecs pad


@dataclass(frozen=True)
class Utterance:
    """One utterance of one voice, synthesized (with rate and pitch) or recorded (with a path).

    A reader gives what its corpus promises; `check_segment` fills in what the decoder really gives
    (a rate of often 48 kHz for Opus, whatever was recorded).
    """

    id: str
    text: str  # "" where there is no transcript
    answer: str
    kind: str
    voice: str
    split: str  # one of those in corpus.py; a reader's are the corpus' own
    seconds: float = 0.0
    rate: int = 0  # words a minute
    pitch: float = 1.0  # times the voice's own
    path: str = ""  # relative to `root`, with `/` between folders
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None for a whole file of which nothing is known yet
    sample_rate: int = SAMPLE_RATE  # Hz
    language: str = "en"
    root: str = ""
    # The sound, only where it was read: float32 (samples,) at 16 kHz, or the same as FLAC.
    wave: np.ndarray | None = field(default=None, repr=False)
    audio: bytes = field(default=b"", repr=False)
    phones: list[Phone] = field(default_factory=list, repr=False)

    def read(self) -> np.ndarray:
        """The sound, float32 (samples,) at 16 kHz.  Raises BadAudio for one that can't be used."""
        if self.wave is not None:
            return self.wave
        if self.audio:
            return soundfile.read(io.BytesIO(self.audio), dtype="float32")[0]
        return read_segment(self.root, self)


class Skipped(NamedTuple):
    """A row that gives no utterance."""

    path: str
    id: str
    reason: str  # a word of the list above
    detail: str  # what was found


Row = Utterance | Skipped


def read_segment(root: Path | str, u: Utterance, maximum_s: float = MAXIMUM_S) -> np.ndarray:
    """The sound of `u`, float32 (n,) at 16 kHz: only its stretch is read.  Raises BadAudio."""
    return _decode(*_stretch(root, u, maximum_s))[0]


def read_part(root: Path | str, u: Utterance, start: int, count: int) -> np.ndarray:
    """Samples `start` to `start + count` at 16 kHz of the sound of `u`, float32 (count,).

    Where the file has another rate, what lies up to 0.1 s around is resampled with them, so that
    they are (to about 1e-4) those of `read_segment`.  Behind the end they are 0.  Raises BadAudio.
    """
    path = Path(root) / u.path
    header = inspect(path)
    rate, first = header.rate, round(u.start * header.rate)
    margin = 0 if rate == SAMPLE_RATE else SAMPLE_RATE // 10
    grid = SAMPLE_RATE // math.gcd(SAMPLE_RATE, rate)  # where samples of both rates fall together
    before = max(0, start - margin) // grid * grid
    last = first + math.ceil((start + count + margin) * rate / SAMPLE_RATE)
    end = header.frames if u.end is None else min(header.frames, round(u.end * rate))
    first += before * rate // SAMPLE_RATE
    wave = to_16_khz(audio.decode(path, first, max(first, min(last, end))), rate)
    wave = wave[start - before : start - before + count]
    return np.pad(wave, (0, count - len(wave)))


def check_segment(
    root: Path | str, u: Utterance, maximum_s: float = MAXIMUM_S, decoded: bool = False
) -> Utterance:
    """`u` with its end, seconds and sample rate as the file has them.  Raises BadAudio.

    Looks at the file's header and tail only, unless `decoded`: then also at every sample.
    """
    path, header, start, stop = _stretch(root, u, maximum_s)
    if decoded or header.damage:  # a damaged file may still hold this segment
        stop = start + _decode(path, header, start, stop)[1]
    end = stop / header.rate if u.end is None else u.end
    return replace(u, end=end, seconds=end - u.start, sample_rate=header.rate)


def _stretch(root: Path | str, u: Utterance, maximum_s: float) -> tuple[Path, Header, int, int]:
    """Its file, with first frame and frame after the last, checked with the header."""
    path = Path(root) / u.path
    header = inspect(path)
    if u.end is None and header.damage:
        raise BadAudio("truncated", path, header.damage)
    rate, start = header.rate, round(u.start * header.rate)
    claimed = header.frames if u.end is None else round(u.end * rate)
    if claimed - start > maximum_s * rate:
        what = f"{(claimed - start) / rate:.0f} s, the limit is {maximum_s:.0f} s"
        raise BadAudio("too_long", path, what)
    short_by = claimed - header.frames
    if not 0 <= start < header.frames or short_by > SLACK_S * rate and header.counted:
        stretch = f"segment {u.start:g} to {u.end} s"
        raise BadAudio("truncated", path, f"{stretch} of a file of {header.frames / rate:.2f} s")
    stop = min(claimed, header.frames)
    refuse_short(path, (stop - start) * SAMPLE_RATE / rate)
    return path, header, start, stop


def _decode(path: Path, header: Header, start: int, stop: int) -> tuple[np.ndarray, int]:
    """The sound at 16 kHz, checked, and how many of the file's frames it is."""
    frames = audio.decode(path, start, stop)
    if header.counted and len(frames) < stop - start - SLACK_S * header.rate or not len(frames):
        found, claimed = len(frames) / header.rate, (stop - start) / header.rate
        raise BadAudio("truncated", path, f"{found:.2f} s could be decoded of {claimed:.2f} s")
    audio.refuse_not_finite(path, frames)
    if (peak := np.abs(frames).max()) < SILENCE:
        raise BadAudio("silent", path, f"no sample above {peak:.1g} of full scale")
    wave = to_16_khz(frames, header.rate)
    refuse_short(path, len(wave))
    return wave, len(frames)
