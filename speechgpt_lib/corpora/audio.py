"""Any sound file to mono float32 at 16 kHz, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from speechgpt_lib.corpora.sound_files import mono, refuse_not_finite, refuse_short, to_16_khz
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path


def read_audio(path: Path | str, maximum_s: float | None = 60.0) -> np.ndarray:
    """Read `path` as float32 samples (n,) at 16 kHz, channels averaged.

    Raises UserError: no such file, not audio, shorter than 25 ms, longer than `maximum_s` seconds,
    or not finite.
    """
    path, formats = Path(path).expanduser(), "wav, flac, ogg, opus or mp3"
    if not path.is_file():
        raise UserError(f"no audio file at {path}: give the path of a {formats} file")
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if maximum_s is not None and seconds > maximum_s:
                limit = f"the limit here is {maximum_s:.0f} s"
                raise UserError(f"{path} is {seconds:.0f} s long, {limit}: cut it into pieces")
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        why = f"({error.error_string}): expected {formats}"
        raise UserError(f"{path} is not a readable sound file {why}") from None
    wave = to_16_khz(mono(samples), rate)
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
            soundfile.write(temporary, np.clip(wave, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            why = f"({error.error_string}): is the disk full?"
            raise UserError(f"could not write {path} {why}") from None
    return path
