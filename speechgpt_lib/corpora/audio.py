"""Sound files ↔ float32 samples: how long a file is, whether it is cut off, its sound.

libsndfile (through soundfile) reads most; what it can't read, or whose length it would only guess,
FFmpeg does (ffmpeg.py).  A file that is cut off shows differently in every format: `inspect` looks
for that, without decoding where the header can be believed.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speechgpt_lib.corpora import ffmpeg
from speechgpt_lib.corpora.ffmpeg import BadAudio
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.runs.stores import located

LIMIT_S = 60  # of a file in one go
MAXIMUM_S = 7200.0  # longer than any file of the corpora, 460 MB as float32 at 16 kHz
HIGHEST_RATE = 384_000  # Hz of any recorder; a patched header may claim more
MOST_FRAMES = 7200 * 48_000  # decoded at once, of one channel
SLACK_S = 0.05  # by which a list's end may lie beyond the file's: lists round, and codecs pad
SILENCE = 1e-4  # of full scale: 16-bit dither stays below
_BLOCK = 1 << 17  # samples decoded and averaged at a time, so that channels cost no memory
_UNKNOWN = 1 << 62  # libsndfile's length of a FLAC stream that doesn't say how long it is


def read_audio(
    path: Path | str, start: float = 0.0, end: float | None = None, longest_s: float = LIMIT_S
) -> np.ndarray:
    """Seconds `start` to `end` of `path`, by default all, as float32 samples (n,) at 16 kHz.

    Raises BadAudio, in whatever format: docs/corpora-and-units.md says for which reasons.
    """
    path = located(path)
    return decode(path, *stretch(path, start, end, longest_s))[0]


def nothing_heard(wave: np.ndarray) -> str | None:
    """Why there is nothing to hear in a wave (samples,): silent, or too quiet; else None."""
    inner = wave[160:-160] if len(wave) > 800 else wave  # to resample a constant bends its ends
    loudest = np.abs(inner - inner.mean()).max(initial=0.0) if len(inner) else 0.0
    if loudest >= SILENCE:
        return None
    kind = "silent" if loudest < 2**-14 else "too quiet"  # the last bit of 16 may rustle
    return f"{kind}: no sample above {loudest:.1g} of full scale, {SILENCE:g} is needed"


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
        import soxr  # a tenth of a second to load, and most sound is at 16 kHz

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
    """What a file says of itself, as far as it can be believed."""

    rate: int  # Hz, as decoded
    frames: int  # samples a channel
    damage: str | None  # how one sees that the file is cut off
    by_ffmpeg: bool = False  # read by FFmpeg, from its start on, and decoded to count `frames`


def inspect(path: Path) -> Header:
    """Read the header and look at the tail.  Raises BadAudio where it can't even be opened."""
    if not os.path.isfile(path):
        what = "that is not a file" if os.path.exists(path) else "no audio file is there"
        raise BadAudio("missing", path, what)
    if not os.access(path, os.R_OK):
        raise BadAudio("missing", path, "Permission denied")
    if (stat := path.stat()).st_size == 0:
        raise BadAudio("empty", path, "not a readable sound file, it has 0 bytes")
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


# Long files hold hundreds of segments, which follow each other; size and time notice a change.
@lru_cache(maxsize=64)
def _inspect(path: Path, size: int, modified_ns: int) -> Header:
    bare, frames, faults = _by_libsndfile(path, size), 0, _joined(path)
    if bare and bare.frames:
        return bare
    try:
        for rate, block in ffmpeg.blocks(path, faults):
            if (frames := frames + len(block)) > MAXIMUM_S * rate:
                break
    except BadAudio:
        if bare:  # it holds no sound
            return bare
        raise
    with open(path, "rb") as raw:
        ogg = _ogg_damage(path, size) if raw.read(4) == b"OggS" else None
    return Header(rate, frames, next(iter(faults), ogg), True)


def _by_libsndfile(path: Path, size: int) -> Header | None:
    """What libsndfile says of a file; None where it reads none or only part, or guesses a length.

    It guesses that of an MP3, and a seek spoils what follows; in GSM it can't seek; of Ogg streams
    one after the other it reads the first.
    """
    with open(path, "rb") as raw:
        if re.match(rb"ID3|\xff[\xe2-\xff]", raw.read(3)):  # MP3
            return None
    with suppress(soundfile.LibsndfileError), soundfile.SoundFile(os.fsencode(path)) as file:
        if not file.seekable() or file.frames >= _UNKNOWN or file.format in ("MP3", "NIST"):
            return None
        if file.format == "OGG":
            damage = _ogg_damage(path, size)
            return None if _is_chain(path) else Header(file.samplerate, file.frames, damage)
        flac = file.format == "FLAC"
        damage = _flac_damage(file) if flac else _claimed_damage(file.extra_info, size)
        return Header(file.samplerate, file.frames, damage or next(iter(_joined(path)), None))
    return None


def stretch(path: Path, start_s: float, end_s: float | None, longest_s: float):
    """The header of a file, and the first frame and that after the last of a stretch of it.

    Raises BadAudio where header and tail show already that it can't be had.
    """
    header = inspect(path)
    rate, frames = header.rate, header.frames
    if rate > HIGHEST_RATE:
        found = f"a header that claims {rate} Hz, the highest is {HIGHEST_RATE}"
        raise BadAudio("not_audio", path, found)
    start, claimed = round(start_s * rate), frames if end_s is None else round(end_s * rate)
    if (seconds := (claimed - start) / rate) > longest_s:
        what = f"{seconds:.0f} s long, the limit is {longest_s:.0f} s: cut it into pieces"
        raise BadAudio("too_long", path, what)
    if end_s is None and header.damage:
        raise BadAudio("truncated", path, header.damage)
    beyond = end_s is not None and (start >= frames or claimed - frames > SLACK_S * rate)
    if start < 0 or beyond:
        what = f"segment {start_s:g} to {end_s} s of a file of {frames / rate:.2f} s"
        raise BadAudio("truncated", path, what)
    stop = min(claimed, frames)
    refuse_short(path, (stop - start) * SAMPLE_RATE / rate)
    return header, start, stop


def decode(path: Path, header: Header, start: int, stop: int) -> tuple[np.ndarray, int]:
    """Frames `start` to `stop` at 16 kHz, checked, and how many of the file's frames it is."""
    if stop - start > MOST_FRAMES:
        what = f"{stop - start} samples at once, the limit is {MOST_FRAMES}: cut it into pieces"
        raise BadAudio("too_long", path, what)
    frames = mono(path, start, stop)
    if len(frames) < stop - start - SLACK_S * header.rate or not len(frames):
        found, claimed = len(frames) / header.rate, (stop - start) / header.rate
        raise BadAudio("truncated", path, f"{found:.2f} s could be decoded of {claimed:.2f} s")
    refuse_not_finite(path, frames)
    wave = to_16_khz(frames, header.rate)
    refuse_short(path, len(wave))
    return wave, len(frames)


def mono(path: Path, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop`, or fewer, at the file's own rate as one channel: float32 (n,).

    Channels are averaged; where they cancel each other in the file, the loudest is taken.  Raises
    BadAudio("truncated") where the decoder gives up.
    """
    blocks = [np.empty(0, np.float32)]
    for block in _blocks(path, start, stop):
        if block.shape[1] == 1:
            block = block[:, 0]
        else:
            stat = path.stat()
            channel = _channel(path, stat.st_size, stat.st_mtime_ns)
            block = block.mean(axis=1) if channel < 0 else block[:, channel]
        blocks.append(block)
    return np.concatenate(blocks)


@lru_cache(maxsize=64)
def _channel(path: Path, size: int, modified_ns: int) -> int:
    """The channel to take instead of the average, -1 for none: of the whole file, so that all its
    stretches agree."""
    average, each = 0.0, 0.0
    with suppress(BadAudio):  # of a damaged file what can be read
        for block in _blocks(path, 0, 1 << 62):
            average += np.square(block.mean(axis=1, dtype=np.float64)).sum()
            each = each + np.square(block, dtype=np.float64).sum(axis=0)
    return int(np.argmax(each)) if average < 0.01 * np.max(each) else -1  # 20 dB are gone


def _blocks(path: Path, start: int, stop: int) -> Iterator[np.ndarray]:
    """Frames `start` to `stop` in blocks float32 (n, channels)."""
    if inspect(path).by_ffmpeg:
        at = 0
        for _, block in ffmpeg.blocks(path, []):
            if at < stop and at + len(block) > start:
                yield block[max(0, start - at) : stop - at]
            if (at := at + len(block)) >= stop:
                return
        return
    with soundfile.SoundFile(os.fsencode(path)) as file:
        left = min(stop, file.frames) - start
        try:
            file.seek(start)
            while left > 0:
                size = min(left, max(1, _BLOCK // file.channels))
                block = file.read(size, dtype="float32", always_2d=True)
                if not len(block):
                    return
                left -= len(block)
                yield block
        except soundfile.LibsndfileError:
            what = f"decoding breaks off near {(stop - left) / file.samplerate:.1f} s"
            raise BadAudio("truncated", path, what) from None


def _flac_damage(file: soundfile.SoundFile) -> str | None:
    """Seek to the last sample: the header still gives the whole length."""
    try:
        file.seek(max(file.frames - 1, 0))
        return None if len(file.read(1)) else "the last sample can't be read"
    except soundfile.LibsndfileError:
        return f"the last of its {file.frames / file.samplerate:.2f} s can't be reached"


def _joined(path: Path) -> list[str]:
    """What is wrong with a wav or aiff file that another follows, as `cat` joins them."""
    with open(path, "rb") as raw:
        kind, size = raw.read(4), raw.read(4)
        raw.seek(8 + int.from_bytes(size, "little" if kind == b"RIFF" else "big"))
        joined = kind in (b"RIFF", b"FORM") and kind == raw.read(4)
    return ["another file follows in it: join sounds, not files"] * joined


def _is_chain(path: Path) -> bool:
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"OggS\0\2", 4) > 0  # another first page


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


def _claimed_damage(log: str, size: int) -> str | None:
    """Whether libsndfile's log says that the sound has more bytes than are there, or fewer."""
    name = r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
    for claimed, found in re.findall(name, log, re.MULTILINE):
        if int(found) < int(claimed) < ffmpeg.PLACEHOLDER:
            return f"{found} bytes of sound are there, its header claims {claimed}"
    found = re.search(r"Unknown chunk marker \(\w+\) at position (\d+)\. Exiting", log)
    if found and (behind := size - int(found[1])) > 4096:
        return f"{behind} bytes follow where its header says that the sound ends: export it again"
    return None
