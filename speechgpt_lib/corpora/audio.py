"""Any sound file to mono float32 at 16 kHz, and back.

Channels are averaged, never concatenated (the release flattened stereo into one channel of twice the length).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path


def read_audio(path: Path | str, maximum_s: float | None = 60.0) -> np.ndarray:
    """Read `path` as float32 samples (n,) at 16 kHz, channels averaged.

    Raises:
        UserError: no such file, not audio, shorter than 25 ms, longer than `maximum_s` seconds, or not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"no audio file at {path}: give the path of a wav, flac, ogg, opus or mp3 file"
        )
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if maximum_s is not None and seconds > maximum_s:
                raise UserError(
                    f"{path} is {seconds:.0f} s long, the limit here is {maximum_s:.0f} s: cut it into shorter pieces"
                )
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path} is not a readable sound file ({error.error_string}): expected wav, flac, ogg, opus or mp3"
        ) from None
    return to_mono_16k(samples, rate, str(path))


def to_mono_16k(samples: np.ndarray, rate: int, where: str = "audio") -> np.ndarray:
    """Average channels of `samples` (n,) or (n, channels) and resample from `rate` Hz to 16 kHz."""
    wave = np.asarray(samples, dtype=np.float32)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if rate != SAMPLE_RATE and len(wave):
        wave = soxr.resample(wave, rate, SAMPLE_RATE).astype(np.float32)
    if len(wave) < MINIMUM_SAMPLES:
        raise UserError(
            f"{where} has {len(wave)} samples at 16 kHz: at least {MINIMUM_SAMPLES} (25 ms) are needed"
        )
    if not np.isfinite(wave).all():
        raise UserError(
            f"{where} has samples that are not finite numbers (NaN or infinite): export it again"
        )
    return np.ascontiguousarray(wave)


def write_audio(path: Path | str, wave: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    """Write float samples (n,) in [-1, 1] as 16-bit wav or flac, by the suffix of `path`, atomically."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"cannot write {path}: the name must end in .wav or .flac")
    with atomic_path(path) as temporary:
        try:
            soundfile.write(temporary, np.clip(wave, -1.0, 1.0), rate, subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            raise UserError(
                f"could not write {path} ({error.error_string}): is the disk full?"
            ) from None
    return path
