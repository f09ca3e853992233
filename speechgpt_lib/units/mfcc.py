"""MFCC at HuBERT's frame rate: the targets of HuBERT's first iteration, and the baseline units."""

import functools
import math

import torch

from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES

FFT, MELS, COEFFICIENTS = 512, 40, 13


def mfcc(wave: torch.Tensor) -> torch.Tensor:
    """13 MFCCs with first and second differences: (samples,) at 16 kHz → (frames, 39) float32.

    Windows are those of HuBERT's convolutions: frames = 1 + (samples − 400) // 320.
    """
    window, mel, dct = _constants()
    frames = wave.float().unfold(0, MINIMUM_SAMPLES, HOP) * window  # (frames, 400)
    power = torch.fft.rfft(frames, FFT).abs().square()  # (frames, 257)
    cepstrum = torch.log(power @ mel + 1e-5) @ dct  # (frames, 13)
    first = _differences(cepstrum)
    return torch.cat([cepstrum, first, _differences(first)], dim=1)


def _differences(x: torch.Tensor) -> torch.Tensor:
    """Regression slope over two frames to each side (the usual HTK delta)."""
    padded = torch.nn.functional.pad(x.T[None], (2, 2), mode="replicate")[0].T
    n = len(x)
    return sum(k * (padded[2 + k : 2 + k + n] - padded[2 - k : 2 - k + n]) for k in (1, 2)) / 10


@functools.cache
def _constants() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hann window (400,), triangular mel filters to 8 kHz (257, 40), orthogonal DCT-II (40, 13)."""
    mels = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), MELS + 2)
    points = 700 * (10 ** (mels / 2595) - 1)
    hertz = torch.linspace(0, 8000, FFT // 2 + 1)[:, None]
    rising = (hertz - points[:-2]) / (points[1:-1] - points[:-2])
    falling = (points[2:] - hertz) / (points[2:] - points[1:-1])
    k, n = torch.arange(COEFFICIENTS), torch.arange(MELS)[:, None]
    dct = torch.cos(math.pi * k * (n + 0.5) / MELS) * math.sqrt(2 / MELS)
    return torch.hann_window(MINIMUM_SAMPLES), torch.minimum(rising, falling).clamp(min=0), dct
