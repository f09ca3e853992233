"""Sound files for tests of the readers: small, genuine, in every format the corpora use."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

SUBTYPES = {
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".opus": ("OGG", "OPUS"),
    ".wav": ("WAV", "PCM_16"),
}


def tone(seconds: float = 1.0, rate: int = 16_000, pitch: float = 220.0) -> np.ndarray:
    """A sweep (n,): no two stretches of it are alike, so a wrong seek shows."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (pitch + 40 * time) * time)).astype(np.float32)


def write_sound(path: Path, wave: np.ndarray | None = None, rate: int = 16_000) -> Path:
    """Write `wave` (n,) or (n, channels) in the format that the suffix of `path` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form, subtype = SUBTYPES[path.suffix]
    soundfile.write(path, tone() if wave is None else wave, rate, format=form, subtype=subtype)
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    """Cut the file off, as a broken download leaves it."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def encode(path: Path, codec: str, rate: int, form: str | None = None, **options: str) -> Path:
    """Write a sweep of 2 s with FFmpeg, in the container that `form` or the suffix names."""
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.codec_context.format or "fltp", "mono", rate)
        frame = av.AudioFrame.from_ndarray(tone(2.0, rate)[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for part in [*resampler.resample(frame), None]:
            container.mux(stream.encode(part))
    return path
