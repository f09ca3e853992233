"""Sound files ↔ float32 samples: how long a file claims to be, whether it is cut off, its sound.

libsndfile (through soundfile) reads them all, but a file that is cut off shows differently in every
format, and says so by itself in FLAC only: `inspect` looks for that without decoding the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path

FORMATS, LIMIT_S = "wav, flac, ogg, opus or mp3", 60
HIGHEST_RATE = 384_000  # Hz of any recorder; a patched header may claim more
LARGEST = 1 << 28  # bytes of all channels decoded at once
MOST_FRAMES = 7200 * 48_000  # of one channel: two hours
_BLOCK = 1 << 16  # frames decoded and averaged at a time, so that stereo costs no memory
# A frame of MP3 may use bits of frames before it.  After a seek the decoder lacks them and the
# first frames come out wrong, so decoding starts this many samples early and drops them: 32 frames,
# more than the 511 bytes of reservoir at the lowest bit rate.
_MP3_RUN_UP = 32 * 1152
_UNKNOWN = 1 << 62  # libsndfile's length of a FLAC stream that doesn't say how long it is
_MAGIC = (b"fLaC", b"OggS", b"RIFF", b"RF64", b"FORM", b"ID3")


class BadAudio(UserError):
    """Sound that can't be used: `reason` is one word, `path` the file, `detail` what was found."""

    def __init__(self, reason: str, path: Path | str, detail: str):
        super().__init__(f"{path}: {reason} ({detail})")
        self.reason, self.path, self.detail = reason, path, detail


def read_audio(path: Path | str) -> np.ndarray:
    """Read `path` as float32 samples (n,) at 16 kHz, channels averaged.

    Raises UserError: no such file, not audio, shorter than 25 ms, longer than 60 s, or not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no audio file at {path}: give the path of a {FORMATS} file")
    with _opened(path) as file:
        if (seconds := file.frames / file.samplerate) > LIMIT_S:
            limit = f"the limit here is {LIMIT_S} s"
            raise UserError(f"{path} is {seconds:.0f} s long, {limit}: cut it into pieces")
        wave = to_16_khz(_mono(file, file.frames), file.samplerate)
    refuse_short(path, len(wave))
    refuse_not_finite(path, wave)
    return wave


def write_audio(path: Path | str, wave: np.ndarray) -> Path:
    """Write float samples (n,) at 16 kHz in [-1, 1] as 16-bit wav or flac, atomically."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"cannot write {path}: the name must end in .wav or .flac")
    with atomic_path(path) as temporary:
        try:
            name, clipped = os.fsencode(temporary), np.clip(wave, -1.0, 1.0)
            soundfile.write(name, clipped, SAMPLE_RATE, subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            raise UserError(f"could not write {path} ({error}): is the disk full?") from None
    return path


def to_16_bits(wave: np.ndarray) -> np.ndarray:
    """float32 samples in [-1, 1] → int16, as most sound files hold them."""
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)


def samples_of(wave: np.ndarray) -> np.ndarray:
    """A wave held as int16 or float32 → float32 (samples,)."""
    return wave if wave.dtype == np.float32 else wave.astype(np.float32) / 32768


def to_16_khz(wave: np.ndarray, rate: int) -> np.ndarray:
    """Resample float32 (n,) from `rate` Hz to 16 kHz."""
    if rate != SAMPLE_RATE and len(wave):
        wave = soxr.resample(wave, rate, SAMPLE_RATE).astype(np.float32, copy=False)
    return np.ascontiguousarray(wave)


def refuse_short(path: Path | str, samples: float) -> None:
    """Raise BadAudio("too_short") for fewer samples at 16 kHz than HuBERT needs for one frame."""
    if samples < MINIMUM_SAMPLES:
        what = f"{max(samples, 0):.0f} samples at 16 kHz, at least {MINIMUM_SAMPLES} are needed"
        raise BadAudio("too_short", path, what)


def refuse_not_finite(path: Path | str, wave: np.ndarray) -> None:
    """Raise BadAudio("not_finite") for samples that are NaN or infinite."""
    if bad := np.count_nonzero(~np.isfinite(wave)):
        what = f"{bad} of {len(wave)} samples are NaN or infinite: export it again"
        raise BadAudio("not_finite", path, what)


class Header(NamedTuple):
    """What a file says of itself."""

    rate: int  # Hz, as decoded
    frames: int  # samples a channel
    counted: bool  # false where `frames` is only a guess from the bit rate
    damage: str | None  # how one sees that the file is cut off


def inspect(path: Path) -> Header:
    """Read the header and look at the tail.  Raises BadAudio where it can't even be opened."""
    if not os.path.isfile(path):
        what = "that is not a file" if os.path.exists(path) else "No such file or directory"
        raise BadAudio("missing", path, what)
    if (stat := path.stat()).st_size == 0:
        raise BadAudio("empty", path, "0 bytes")
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


# Long files hold hundreds of segments, which follow each other; size and time notice a change.
@lru_cache(maxsize=64)
def _inspect(path: Path, size: int, modified_ns: int) -> Header:
    counted, damage = True, None
    with _opened(path) as file:
        if file.format == "MP3":
            counted, damage = _mp3_count(path, size)
        elif file.format == "OGG":
            damage = _ogg_damage(path, size)
        elif file.format in ("WAV", "WAVEX", "RF64"):
            damage = _wav_damage(file.extra_info)
        elif file.frames >= _UNKNOWN:
            what = "its header does not say how long it is: encode it again, but into no pipe"
            raise BadAudio("truncated", path, what)
        elif file.format == "FLAC":
            damage = _flac_damage(file)
        return Header(file.samplerate, file.frames, counted, damage)


def decode(path: Path, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop`, or fewer, at the file's own rate, channels averaged: float32 (n,).

    Raises BadAudio("truncated") where the decoder gives up.
    """
    blocks = [np.empty(0, np.float32)]
    with _opened(path) as file:
        run_up = min(start, _MP3_RUN_UP) if file.format == "MP3" else 0
        left = stop - start + run_up
        # MP3 in one go: soundfile seeks after every read, and a seek spoils what follows.
        if left > MOST_FRAMES:
            raise BadAudio("too_long", path, f"{left} samples at once, the limit is {MOST_FRAMES}")
        size = left if file.format == "MP3" else _BLOCK
        try:
            if start > run_up:
                file.seek(start - run_up)
            while left > 0 and len(block := _mono(file, min(size, left))):
                blocks.append(block)
                left -= len(block)
        except soundfile.LibsndfileError:
            what = f"decoding breaks off near {(stop - left) / file.samplerate:.1f} s"
            raise BadAudio("truncated", path, what) from None
    return np.concatenate(blocks)[run_up:]


def _mono(file: soundfile.SoundFile, count: int) -> np.ndarray:
    """The next `count` samples: channels are averaged, never concatenated."""
    if file.format != "MP3" and (size := 4 * count * file.channels) > LARGEST:
        what = f"{file.channels} channels of {file.samplerate} Hz take {size >> 20} MB at once"
        raise BadAudio("too_long", file.name, f"{what}: mix them into one, at 16 kHz")
    samples = file.read(count, dtype="float32", always_2d=True)
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    try:
        with open(path, "rb") as raw:
            begin = raw.read(4)
        with soundfile.SoundFile(os.fsencode(path)) as file:
            if file.samplerate > HIGHEST_RATE:
                found = f"a header that claims {file.samplerate} Hz, the highest is {HIGHEST_RATE}"
                raise BadAudio("not_audio", path, found)
            yield file
    except OSError as error:
        raise BadAudio("missing", path, error.strerror or str(error)) from None
    except soundfile.LibsndfileError:
        reason, why = "not_audio", f"expected {FORMATS}"
        if begin.startswith(_MAGIC) or begin[:1] == b"\xff" and begin[1:2] >= b"\xe0":  # bare MP3
            reason, why = "truncated", "too little of it can be read"
        what = f"not a readable sound file, it begins with {begin!r}: {why}"
        raise BadAudio(reason, path, what) from None


def _flac_damage(file: soundfile.SoundFile) -> str | None:
    """Seek to the last sample: the header still gives the whole length."""
    try:
        file.seek(max(file.frames - 1, 0))
        return None if len(file.read(1)) else "the last sample can't be read"
    except soundfile.LibsndfileError:
        return f"the last of its {file.frames / file.samplerate:.2f} s can't be reached"


def _mp3_count(path: Path, size: int) -> tuple[bool, str | None]:
    """Whether it counts its frames (Xing, Info, VBRI) or they are a guess; what bytes it lacks."""
    with open(path, "rb") as raw:
        begin, tag = raw.read(10), 0
        if begin[:3] == b"ID3" and len(begin) == 10:
            tag = 10 + (begin[6] << 21 | begin[7] << 14 | begin[8] << 7 | begin[9])
        raw.seek(tag)
        first = raw.read(256)
    found = re.search(rb"(?:Xing|Info)(.{4})", first, re.DOTALL)
    if not found:
        return b"VBRI" in first, None
    flags, after = int.from_bytes(found[1]), first[found.end() :]
    if flags & 3 != 3:
        return bool(flags & 1), None
    mp3_frames, counted = int.from_bytes(after[:4]), int.from_bytes(after[4:8])
    missing = counted - (size - tag)
    # Encoders disagree on whether the Xing/Info frame counts itself: one frame may be missing.
    cut_off = missing > counted / max(mp3_frames, 1)
    return True, f"{missing} bytes of {counted} are missing" if cut_off else None


def _ogg_damage(path: Path, size: int) -> str | None:
    """Look at the last page (RFC 3533): 27 bytes, a table of segments' lengths, the segments."""
    with open(path, "rb") as raw:
        raw.seek(max(0, size - 2 * 65_307))  # a page has at most so many bytes
        tail = raw.read()
    page = tail.rfind(b"OggS")
    table = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 26 else b""
    if not table or page + 27 + len(table) + sum(table) > len(tail):
        return "its last Ogg page is cut off"
    return None if tail[page + 5] & 4 else "it ends without the page that closes the stream"


def _wav_damage(log: str) -> str | None:
    """Whether libsndfile's log says that the data chunk claims more bytes than there are."""
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    # Programs that write WAV into a pipe leave the greatest number there: no claim at all.
    if found and int(found[2]) < int(found[1]) < (1 << 31) - 1:
        return f"{found[2]} bytes of sound are there, its header claims {found[1]}"
    return None
