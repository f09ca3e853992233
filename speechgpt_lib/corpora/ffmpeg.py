"""The second decoder of sound files: FFmpeg (through PyAV), for what libsndfile doesn't read.

That is m4a, webm, amr and many more, Ogg with other codecs, and files that don't say how long they
are.  They are always decoded from their start, so that a length is counted, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np

from speechgpt_lib.errors import UserError

FORMATS = "wav, flac, ogg, opus, mp3, m4a, webm or another format that FFmpeg reads"
# No playlists, which would open other files.
_CONTAINERS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,matroska,mov,mp3,nistsphere,ogg"
_OPTIONS = {"format_whitelist": f"{_CONTAINERS},tta,w64,wav,wv"}
# Those whose headers count what follows; of the others FFmpeg only estimates a duration.
_CLAIMING = {"ape", "asf", "avi", "caf", "flac", "matroska,webm", "nistsphere", "tta", "wav", "wv"}
_CLAIMING |= {"mov,mp4,m4a,3gp,3g2,mj2"}
PLACEHOLDER = 0x7FF00000  # bytes; what writes into a pipe claims so many or more: that is no claim
_LOST_S = 0.1  # that may lie between a claimed duration and what is decoded: codecs pad
_HEADS = rb"fLaC|OggS|RIFF....WAVE|RF64|FORM....AIF|ID3|caff|\x1aE\xdf\xa3|....ftyp|\xff[\xe2-\xff]"
_KBPS = (  # a frame of MP3's layer III, by bits of its header: MPEG 2 and 2.5, then MPEG 1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
)


class BadAudio(UserError):
    """Sound that can't be used: `reason` is one word, `path` the file, `detail` what was found."""

    def __init__(self, reason: str, path: Path | str, detail: str):
        super().__init__(f"{path}: {reason} ({detail})")
        self.reason, self.path, self.detail = reason, path, detail


def count(path: Path, longest_s: float) -> tuple[int, int, str | None]:
    """Rate in Hz, frames, and how one sees that the file is cut off; stops beyond `longest_s`.

    Raises BadAudio: not_audio, unsupported, or truncated so that nothing can be decoded.
    """
    with _opened(path) as (file, container, stream):
        frames, rate, faults = 0, stream.rate, []
        for block in _decoded(file, container, stream, faults):
            frames += len(block)
            if frames > longest_s * rate:
                return rate, frames, None
        if not frames:
            raise BadAudio("truncated", path, f"no sound of its {stream.codec.name} can be decoded")
        claimed, bytes_s = 0.0, (stream.codec_context.bit_rate or 0) / 8
        if container.format.name in _CLAIMING and stream.duration:
            claimed = float(stream.duration * stream.time_base)
        elif container.format.name in _CLAIMING and len(container.streams) == 1:
            claimed = (container.duration or 0) / av.time_base
        seconds = frames / rate
        if claimed - seconds > _LOST_S and claimed * bytes_s < PLACEHOLDER:
            return rate, frames, f"{seconds:.2f} s could be decoded of {claimed:.2f} s"
        return rate, frames, faults[-1] if faults else None


def blocks(path: Path, start: int, stop: int) -> Iterator[np.ndarray]:
    """Frames `start` to `stop` in blocks float32 (n, channels)."""
    at = 0
    with _opened(path) as (file, container, stream):
        for block in _decoded(file, container, stream, []):
            if at + len(block) > start:
                yield block[max(0, start - at) : stop - at]
            if (at := at + len(block)) >= stop:
                return


@contextmanager
def _opened(path: Path):
    """The open file, its container and its first sound, with a decoder."""
    with open(path, "rb") as file:  # without its name, by which FFmpeg would guess formats
        begin = file.read(12)
        file.seek(0)
        try:
            nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
            container = av.open(nameless, options=_OPTIONS)
        except (av.error.FFmpegError, ValueError):
            known = re.match(_HEADS, begin, re.DOTALL)
            reason = "truncated" if known else "not_audio"
            why = "too little of it can be read" if known else f"expected {FORMATS}"
            what = f"not a readable sound file, it begins with {begin[:4]!r}: {why}"
            raise BadAudio(reason, path, what) from None
        with container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                what = f"{container.format.long_name} without sound that FFmpeg can decode"
                raise BadAudio("unsupported", path, f"{what}: expected {FORMATS}")
            yield file, container, stream


def _decoded(file, container, stream, faults: list[str]) -> Iterator[np.ndarray]:
    """All that can be decoded, in blocks; in the end `faults` says what shows that it isn't all."""
    lost, at, last, shape, wav = 0.0, 0, None, None, container.format.name == "wav"
    for packet in container.demux(stream):
        try:
            frames, broken = packet.decode(), False
        except av.error.FFmpegError:
            frames, broken = [], True
            lost += float((packet.duration or 0) * stream.time_base)
        # The last packet of a wav that doesn't know its size counts as corrupt.
        broken = broken or packet.is_corrupt or any(frame.is_corrupt for frame in frames)
        if packet.size:
            last, cut = packet, broken and not wav
        for frame in frames:
            shape = shape or (stream.rate, frame.layout.nb_channels)
            if (frame.sample_rate, frame.layout.nb_channels) != shape:
                what = "its sampling rate or number of channels changes: convert it to wav"
                raise BadAudio("unsupported", file.name, what)
            at += frame.samples
            yield _samples(frame)
    if last and (cut or lost > _LOST_S or _is_cut(file, container, stream, last)):
        faults.append(f"{at / stream.rate:.2f} s could be decoded, the rest is cut off or damaged")


def _is_cut(file, container, stream, last) -> bool:
    """Whether what follows the last whole packet, or itself, shows that something is missing."""
    if container.format.name == "mp3" and stream.codec.name.startswith("mp3"):
        head = bytes(last)[:3]
        first = head[1] >> 3 & 1  # MPEG 1
        size = (144 if first else 72) * 1000 * _KBPS[first][head[2] >> 4] // stream.rate
        return last.size < size + (head[2] >> 1 & 1)
    if container.format.name == "matroska,webm" and not container.duration:  # a live recording
        file.seek(last.pos + 4 + last.size)
        return file.read(4).startswith((b"\xa3", b"\xa0", b"\x1f\x43\xb6\x75"))
    return False


def _samples(frame) -> np.ndarray:
    """A frame of any sample format → float32 (samples, channels)."""
    x = frame.to_ndarray()
    x = x.T if frame.format.is_planar else x.reshape(frame.samples, -1)
    if x.dtype.kind in "iu":  # of 8 bits unsigned, of more signed
        half = 1 << 8 * x.itemsize - 1
        x = (x.astype(np.float64) - half * (x.dtype.kind == "u")) / half
    return x.astype(np.float32, copy=False)
