"""Sound files as they are found on disks: how long they claim to be, whether they are cut off, and their samples.

libsndfile (through soundfile) reads them all, but a file that is cut off shows differently in every format, and it says so by itself
in FLAC only:

| format | what libsndfile does with a file that is cut off        | how it is noticed here without decoding the file             |
|--------|---------------------------------------------------------|---------------------------------------------------------------|
| FLAC   | keeps the header's length, fails where the data ends    | a seek to the last sample fails                               |
| MP3    | keeps the length of the Xing/Info frame, reads less     | fewer bytes than the Xing/Info frame counts                   |
| MP3 without that frame | guesses the length from the bit rate    | not at all: nothing in the file says how long it was          |
| Ogg (Opus, Vorbis) | takes the last whole page as the end        | the last page is not whole, or not marked as the last         |
| WAV    | takes the bytes that are there as the length            | the data chunk claims more bytes than there are               |
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from speechgpt_lib.errors import UserError

_BLOCK = (
    1 << 16
)  # frames decoded at a time: channels are averaged block by block, so that stereo costs no memory
# A frame of MP3 may use bits of frames before it.  After a seek the decoder lacks them and the first frames come out wrong, so decoding
# starts this many samples early (32 frames: more than the 511 bytes of reservoir at the lowest bit rate) and drops them.
_MP3_RUN_UP = 32 * 1152
_UNKNOWN = 1 << 62  # libsndfile's length of a FLAC stream that doesn't say how long it is
_MAGIC = (b"fLaC", b"OggS", b"RIFF", b"RF64", b"FORM", b"ID3")


class BadAudio(UserError):
    """Sound that can't be used: `reason` is one word, `path` the file, `detail` what was found."""

    def __init__(self, reason: str, path: Path, detail: str):
        super().__init__(f"{path}: {reason} ({detail})")
        self.reason, self.path, self.detail = reason, path, detail


@dataclass(frozen=True)
class Header:
    """What a file says of itself: `rate` in Hz as decoded, `frames` (samples a channel), and `format` as soundfile names it.

    `counted` is false where `frames` is only a guess from the bit rate.  `damage` says how one sees that the file is cut off, or is None.
    """

    rate: int
    frames: int
    format: str
    counted: bool
    damage: str | None


def inspect(path: Path) -> Header:
    """Read the header and look at the tail.  Raises BadAudio: missing, empty, not_audio, truncated (can't even be opened)."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise BadAudio("missing", path, error.strerror or str(error)) from None
    if not path.is_file():
        raise BadAudio("missing", path, "that is a folder or a device, not a file")
    if stat.st_size == 0:
        raise BadAudio("empty", path, "0 bytes")
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(
    maxsize=64
)  # long files hold hundreds of segments, which follow each other; size and time are there to notice a change
def _inspect(path: Path, size: int, modified_ns: int) -> Header:
    with _opened(path) as file:
        rate, frames, format = file.samplerate, file.frames, file.format
        counted, damage = True, None
        if format == "MP3":
            counted, damage = _mp3_count(path, size)
        elif format == "OGG":
            damage = _ogg_damage(path, size)
        elif format in ("WAV", "WAVEX", "RF64"):
            damage = _wav_damage(file)
        elif frames >= _UNKNOWN:
            raise BadAudio(
                "truncated",
                path,
                "its header does not say how long it is: was it written into a pipe? encode it again",
            )
        elif format == "FLAC":
            damage = _flac_damage(file)
        return Header(rate, frames, format, counted, damage)


def decode(path: Path, header: Header, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop` at the file's own rate, channels averaged: float32, fewer where the file has fewer.

    Raises BadAudio("truncated") where the decoder gives up.
    """
    run_up = min(start, _MP3_RUN_UP) if header.format == "MP3" else 0
    with _opened(path) as file:
        if start > run_up:
            try:
                file.seek(start - run_up)
            except soundfile.LibsndfileError:
                raise BadAudio(
                    "truncated", path, f"the decoder can't reach {start / header.rate:.2f} s"
                ) from None
        blocks = list(_blocks(file, path, stop - start + run_up))
    return np.concatenate([*blocks, np.empty(0, np.float32)])[run_up:]


def _blocks(file: soundfile.SoundFile, path: Path, frames: int):
    done, size = 0, _BLOCK
    if file.format == "MP3":
        size = frames  # in one go, since soundfile seeks after every read, and a seek in MP3 spoils what follows (see _MP3_RUN_UP)
    while done < frames:
        try:
            block = file.read(min(size, frames - done), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            raise BadAudio(
                "truncated", path, f"decoding breaks off near {done / file.samplerate:.1f} s"
            ) from None
        if not len(block):
            return
        done += len(block)
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


@contextmanager
def _opened(path: Path):
    try:
        with open(path, "rb") as raw:
            begin = raw.read(4)
    except OSError as error:
        raise BadAudio("missing", path, error.strerror or str(error)) from None
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        if (
            begin.startswith(_MAGIC) or begin[:1] == b"\xff" and begin[1:2] >= b"\xe0"
        ):  # the latter is MP3 without tags
            raise BadAudio(
                "truncated",
                path,
                f"begins like a sound file ({begin!r}), but too little of it can be read",
            ) from None
        raise BadAudio(
            "not_audio", path, f"begins with {begin!r}: not wav, flac, ogg, opus or mp3"
        ) from None
    with file:
        yield file


def _flac_damage(file: soundfile.SoundFile) -> str | None:
    try:
        file.seek(max(file.frames - 1, 0))
        return None if len(file.read(1)) else "the last sample can't be read"
    except soundfile.LibsndfileError:
        return f"the last of its {file.frames / file.samplerate:.2f} s can't be reached"


def _mp3_count(path: Path, size: int) -> tuple[bool, str | None]:
    """Whether the file counts its frames (a Xing or Info frame, or VBRI), and what is missing of the bytes that it counts."""
    with open(path, "rb") as raw:
        begin = raw.read(10)
        tag = 0
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
    # Encoders disagree on whether the Xing/Info frame counts itself.
    return True, f"{missing} bytes of {counted} are missing" if missing > counted / max(
        mp3_frames, 1
    ) else None


def _ogg_damage(path: Path, size: int) -> str | None:
    """Look at the last page (RFC 3533): 27 bytes of header, a table of segment lengths, the segments; at most 65,307 bytes."""
    with open(path, "rb") as raw:
        raw.seek(max(0, size - 2 * 65_307))
        tail = raw.read()
    page = tail.rfind(b"OggS")
    table = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 26 else b""
    if not table or page + 27 + len(table) + sum(table) > len(tail):
        return "its last Ogg page is cut off"
    return None if tail[page + 5] & 4 else "it ends without the page that closes the stream"


def _wav_damage(file: soundfile.SoundFile) -> str | None:
    found = re.search(
        r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE
    )  # libsndfile's own log
    # Programs that write WAV into a pipe leave the greatest number there: no claim at all.
    if found and int(found[2]) < int(found[1]) < (1 << 31) - 1:
        return f"{found[2]} bytes of sound are there, its header claims {found[1]}"
    return None
