"""One row of the utterance table, and its sound: `Segment` → float32 samples at 16 kHz, or `BadAudio` with a reason.

Whatever corpus a segment comes from, it names a stretch of one sound file.  What is wrong with the file is said in one word, so that
the words can be counted:

| reason       | the file or segment …                                               | known without decoding            |
|--------------|---------------------------------------------------------------------|-----------------------------------|
| `missing`    | is not there, or can't be opened                                    | yes                               |
| `empty`      | has 0 bytes                                                         | yes                               |
| `not_audio`  | does not begin like any sound file (an error page saved as mp3)     | yes                               |
| `truncated`  | holds fewer samples than its header, or the segment's end, claims   | if cut off; damage inside is not  |
| `too_long`   | is longer than the limit                                            | yes                               |
| `too_short`  | has fewer than 400 samples at 16 kHz                                | yes                               |
| `not_finite` | has samples that are NaN or infinite                                | no                                |
| `silent`     | stays below 1e-4 of full scale                                      | no                                |
| `bad_row`    | has a line in the corpus' own lists that can't be understood        | said by the readers               |
| `not_speech` | is marked as noise, music or silence: no fault, and not quarantined | said by the readers               |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr

from speechgpt_lib.corpora.sound_files import BadAudio, Header, decode, inspect
from speechgpt_lib.rates import MINIMUM_SAMPLES, SAMPLE_RATE

SILENCE = 1e-4  # of full scale: 16-bit dither stays below
MAXIMUM_S = 7200.0  # two hours: longer than any file of these corpora, 460 MB as float32 at 16 kHz
SLACK_S = 0.05  # by so much a list's end time may lie beyond the file's: lists are rounded, and codecs pad


@dataclass(frozen=True, slots=True)
class Segment:
    """One utterance: seconds `start` to `end` of the sound file `path`.

    `path` is relative to the corpus' root, with `/` between folders.  `end` is None for a whole file of which nothing is known yet;
    `prepare` fills it in.  `sample_rate` is in Hz: what the corpus promises, or after `prepare` what the decoder really gives (for
    Opus often 48 kHz, whatever was recorded).  `text` is None where there is no transcript.
    """

    id: str
    path: str
    start: float
    end: float | None
    sample_rate: int
    text: str | None
    speaker: str
    language: str
    split: str

    @property
    def seconds(self) -> float | None:
        return None if self.end is None else self.end - self.start


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that gives no utterance: `reason` is one word of the table above, `detail` says what was found."""

    path: str
    id: str
    reason: str
    detail: str


def read_segment(root: Path | str, segment: Segment, maximum_s: float = MAXIMUM_S) -> np.ndarray:
    """The sound of `segment` as float32 (n,) at 16 kHz: channels averaged, only its own stretch of the file read.

    Raises:
        BadAudio: with the reason in one word (see the table above).
    """
    path = Path(root) / segment.path
    header = inspect(path)
    start, stop = _frames(path, header, segment, maximum_s)
    return _at_16_khz(path, _decode_checked(path, header, start, stop), header.rate)


def read_part(root: Path | str, segment: Segment, start: int, count: int) -> np.ndarray:
    """Samples `start` to `start + count` at 16 kHz of a segment's sound, float32; reads little more of the file than these.

    Where the file has another rate, what lies up to 0.1 s around is resampled with them, so that they are (to about 1e-4) what
    `read_segment` gives there.  What lies behind the end is 0.  Raises BadAudio.
    """
    path = Path(root) / segment.path
    header = inspect(path)
    margin = 0 if header.rate == SAMPLE_RATE else SAMPLE_RATE // 10
    grid = SAMPLE_RATE // math.gcd(
        SAMPLE_RATE, header.rate
    )  # where samples of both rates fall together
    begin = max(0, start - margin) // grid * grid
    first = round(segment.start * header.rate) + begin * header.rate // SAMPLE_RATE
    last = round(segment.start * header.rate) + math.ceil(
        (start + count + margin) * header.rate / SAMPLE_RATE
    )
    end = (
        header.frames
        if segment.end is None
        else min(header.frames, round(segment.end * header.rate))
    )
    wave = decode(path, header, first, max(first, min(last, end)))
    if header.rate != SAMPLE_RATE and len(wave):
        wave = soxr.resample(wave, header.rate, SAMPLE_RATE).astype(np.float32, copy=False)
    wave = wave[start - begin : start - begin + count]
    return np.pad(wave, (0, count - len(wave)))


def check_segment(
    root: Path | str, segment: Segment, maximum_s: float = MAXIMUM_S, decoded: bool = False
) -> Segment:
    """`segment` with `end` and `sample_rate` as the file has them; raises BadAudio as `read_segment` would.

    Looks at the file's header and tail only, unless `decoded`: then also at every sample.
    """
    path = Path(root) / segment.path
    header = inspect(path)
    start, stop = _frames(path, header, segment, maximum_s)
    if decoded or header.damage:  # a damaged file may still hold this segment
        wave = _decode_checked(path, header, start, stop)
        _at_16_khz(path, wave, header.rate)
        stop = start + len(wave)
    end = stop / header.rate if segment.end is None else segment.end
    return replace(segment, end=end, sample_rate=header.rate)


def _frames(path: Path, header: Header, segment: Segment, maximum_s: float) -> tuple[int, int]:
    """First frame and the frame after the last, at the file's own rate, checked against what the header says."""
    if segment.end is None and header.damage:
        raise BadAudio("truncated", path, header.damage)
    start = round(segment.start * header.rate)
    claimed = header.frames if segment.end is None else round(segment.end * header.rate)
    if claimed - start > maximum_s * header.rate:
        raise BadAudio(
            "too_long",
            path,
            f"{(claimed - start) / header.rate:.0f} s, the limit is {maximum_s:.0f} s",
        )
    short_by = claimed - header.frames
    if start < 0 or start >= header.frames or short_by > SLACK_S * header.rate and header.counted:
        raise BadAudio(
            "truncated",
            path,
            f"segment {segment.start:g} to {segment.end} s of a file of {header.frames / header.rate:.2f} s",
        )
    stop = min(claimed, header.frames)
    _refuse_short(path, (stop - start) * SAMPLE_RATE / header.rate)
    return start, stop


def _decode_checked(path: Path, header: Header, start: int, stop: int) -> np.ndarray:
    wave = decode(path, header, start, stop)
    if header.counted and len(wave) < stop - start - SLACK_S * header.rate or not len(wave):
        found, claimed = len(wave) / header.rate, (stop - start) / header.rate
        raise BadAudio("truncated", path, f"{found:.2f} s could be decoded of {claimed:.2f} s")
    if not np.isfinite(wave).all():
        raise BadAudio(
            "not_finite",
            path,
            f"{np.count_nonzero(~np.isfinite(wave))} of {len(wave)} samples are NaN or infinite",
        )
    if (peak := np.abs(wave).max()) < SILENCE:
        raise BadAudio("silent", path, f"no sample above {peak:.1g} of full scale")
    return wave


def _at_16_khz(path: Path, wave: np.ndarray, rate: int) -> np.ndarray:
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE).astype(np.float32, copy=False)
    _refuse_short(path, len(wave))
    return np.ascontiguousarray(wave)


def _refuse_short(path: Path, samples: float) -> None:
    if samples < MINIMUM_SAMPLES:
        raise BadAudio(
            "too_short",
            path,
            f"{max(samples, 0):.0f} samples at 16 kHz, at least {MINIMUM_SAMPLES} (25 ms) are needed",
        )
