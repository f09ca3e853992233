"""The second decoder of sound files: FFmpeg (through PyAV), for what libsndfile doesn't read.

That is m4a, webm, amr and many more; and for files that don't say how long they are: MP3, and FLAC
and wav from a pipe.  They are always decoded from their start, so that a length is counted, never
guessed.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from speechgpt_lib.errors import UserError

FORMATS = "wav, flac, ogg, opus, mp3, m4a, webm or another format that FFmpeg reads"
MICROSECONDS = 1_000_000  # in which FFmpeg counts the duration of a file
PLACEHOLDER = 0x7FF00000  # bytes; what writes into a pipe claims so many or more: that is no claim
# No playlists, which would open other files.
_CONTAINERS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,matroska,mov,mp3,nistsphere,ogg"
_OPTIONS = {"format_whitelist": f"{_CONTAINERS},tta,w64,wav,wv"}
# Those whose headers count what follows; of the others FFmpeg only estimates a duration.
_CLAIMING = ("ape", "asf", "avi", "caf", "flac", "matroska", "mov", "nist", "tta", "wav", "wv")
_LOST_S = 0.1  # that may lie between a claimed duration and what is decoded: codecs pad
_HEADS = rb"fLaC|OggS|RIFF....WAVE|RF64|FORM....AIF|ID3|caff|\x1aE\xdf\xa3|....ftyp|\xff[\xe2-\xff]"
_COUNTED = rb"\xff[\xe2-\xff].{11,34}(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](?!\0{4})"
_KBPS = (  # a frame of MP3's layer III, by bits of its header: MPEG 2 and 2.5, then MPEG 1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
)


class BadAudio(UserError):
    """Sound that can't be used: `reason` is one word, `path` the file, `detail` what was found."""

    def __init__(self, reason: str, path: Path | str, detail: str):
        super().__init__(f"{path}: {reason} ({detail})")
        self.reason, self.path, self.detail = reason, path, detail


def blocks(path: Path, faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The rate in Hz and some frames, float32 (n, channels), until the end of the sound.

    In the end `faults` says how one sees that it isn't all.  Raises BadAudio: not_audio,
    unsupported, or truncated so that nothing can be decoded.
    """
    import av  # 20 MB in every process, and few need it

    with open(path, "rb") as file:  # without its name, by which FFmpeg would guess formats
        nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
        try:
            container = av.open(nameless, options=_OPTIONS)
        except (av.error.FFmpegError, ValueError):
            file.seek(0)
            known = re.match(_HEADS, begin := file.read(12), re.DOTALL)
            why = "too little of it can be read" if known else f"expected {FORMATS}"
            what = f"not a readable sound file, it begins with {begin[:4]!r}: {why}"
            raise BadAudio("truncated" if known else "not_audio", path, what) from None
        with container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                what = f"{container.format.long_name} without sound that FFmpeg can decode"
                raise BadAudio("unsupported", path, f"{what}: expected {FORMATS}")
            at, rate, first, lost, whole = 0, stream.rate, None, 0.0, False
            convert = av.AudioResampler("flt")
            with suppress(av.error.FFmpegError):  # from reading on
                for packet in container.demux(stream):
                    try:
                        frames, broken = packet.decode(), packet.is_corrupt
                    except av.error.FFmpegError:
                        frames, broken = [], True
                        lost += float((packet.duration or 0) * stream.time_base)
                    if packet.size:
                        last, cut = packet, broken or any(frame.is_corrupt for frame in frames)
                        first = first or packet
                    for frame in frames:
                        try:
                            (part,) = convert.resample(frame)
                        except ValueError:
                            what = "its rate or number of channels changes: convert it to wav"
                            raise BadAudio("unsupported", path, what) from None
                        at, rate = at + part.samples, part.sample_rate  # HE-AAC's: the double
                        yield rate, part.to_ndarray().reshape(part.samples, -1)
                whole = True
            found = f"{at / rate:.2f} s could be decoded"
            if not at:
                raise BadAudio("truncated", path, f"no sound of its {stream.codec.name}: {found}")
            if (claimed := _claim(file, container, stream, first)) - at / rate > _LOST_S:
                faults.append(f"{found} of {claimed:.2f} s")
            # The last packet of a wav that doesn't know its size counts as corrupt; behind an MP3
            # tags and padding may follow.
            elif cut and container.format.name not in ("wav", "mp3") or lost > _LOST_S or not whole:
                faults.append(f"{found}, the rest is cut off or damaged")
            elif _is_cut(file, container, last):
                faults.append(f"{found}, the rest is cut off")


def _claim(file, container, stream, first) -> float:
    """The seconds that the header claims; 0 for a guess or a placeholder."""
    if container.format.name == "mp3" and first.pos:  # does the frame before count them?
        file.seek(max(0, first.pos - 1500))
        if not re.search(_COUNTED, file.read(min(first.pos, 1500)), re.DOTALL):
            return 0.0
    elif not container.format.name.startswith(_CLAIMING):
        return 0.0
    if stream.duration:
        claimed = float(stream.duration * stream.time_base)
    else:
        claimed = (container.duration or 0) / MICROSECONDS * (len(container.streams) == 1)
    return claimed if claimed * (stream.bit_rate or 0) / 8 < PLACEHOLDER else 0.0


def _is_cut(file, container, last) -> bool:
    """Whether the last packet is incomplete, or an incomplete one follows."""
    if container.format.name == "mp3" and last.stream.codec.name.startswith("mp3"):
        head = bytes(last)[:3]
        first = head[1] >> 3 & 1  # MPEG 1
        size = (144 if first else 72) * 1000 * _KBPS[first][head[2] >> 4] // last.stream.rate
        return head[0] == 255 and last.size < size + (head[2] >> 1 & 1)
    if container.format.name.startswith("matroska") and not container.duration:  # recorded live
        file.seek(last.pos + 4 + last.size)
        return file.read(4).startswith((b"\xa3", b"\xa0", b"\x1f\x43\xb6\x75"))
    return False
