"""Waves and judgements → the losses of the vocoder: how far the sound is off, how real it seems.

Every loss is a mean in which each wave of the batch counts the same, hence a batch may be split
among processes.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from speechgpt_lib.vocoder.discriminators import Judgement

# Samples of the transform (its hop is a quarter), mel bands.
RESOLUTIONS = ((1024, 80), (512, 60), (256, 30))
FLOOR = 1e-4  # of mel magnitudes: about what rounding to 16 bits leaves
CONVERGENCE_WEIGHT = 0.3


def reconstruction_loss(made: Tensor, real: Tensor) -> Tensor:
    """Mean over three resolutions of the L1 distance of log-mel spectra + 0.3 × convergence.

    made, real: waves (batch, samples).  HiFi-GAN has the first at one resolution; spectral
    convergence, ‖|S| − |Ŝ|‖ / ‖|S|‖ over linear frequency, is from Parallel WaveGAN (Yamamoto et
    al. 2020, arXiv 1910.11480, equation 4), here per wave.
    """
    total = made.new_zeros(())
    for fft, bands in RESOLUTIONS:
        window, mel = _constants(fft, bands, str(made.device))
        ours, theirs = (_magnitudes(waves, fft, window) for waves in (made, real))
        total = total + l1_loss(torch.log(mel @ ours + FLOOR), torch.log(mel @ theirs + FLOOR))
        apart, size = ((ours - theirs).flatten(1).norm(dim=1), theirs.flatten(1).norm(dim=1))
        total = total + CONVERGENCE_WEIGHT * (apart / (size + FLOOR)).mean()
    return total / len(RESOLUTIONS)


def discriminator_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Least squares GAN (HiFi-GAN, equation 1): real speech should score 1, made speech 0."""
    pairs = zip(real, made, strict=True)
    return sum((1 - r).square().mean() + m.square().mean() for (r, _), (m, _) in pairs)


def generator_loss(made: list[Judgement]) -> Tensor:
    """Made speech should score 1 (equation 2)."""
    return sum((1 - scores).square().mean() for scores, _ in made)


def feature_matching_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """L1 distance between what the discriminators' layers see in real and made speech (eq. 4)."""
    seen = [zip(a, b, strict=True) for (_, a), (_, b) in zip(real, made, strict=True)]
    return sum(l1_loss(ours, theirs.detach()) for layers in seen for theirs, ours in layers)


def _magnitudes(waves: Tensor, fft: int, window: Tensor) -> Tensor:
    """(batch, samples) → (batch, fft / 2 + 1, frames)."""
    spectrum = torch.stft(waves.float(), fft, fft // 4, window=window, return_complex=True)
    squares = torch.view_as_real(spectrum).square().sum(-1)
    return (squares + 1e-10).sqrt()  # the constant keeps the root's gradient finite at silence


@functools.cache
def _constants(fft: int, bands: int, device: str) -> tuple[Tensor, Tensor]:
    """Hann window (fft,) and triangular mel filters (bands, fft / 2 + 1), HTK scale up to 8 kHz."""
    mels = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), bands + 2)
    points = 700 * (10 ** (mels / 2595) - 1)  # Hz
    hertz = torch.linspace(0, 8000, fft // 2 + 1)
    lower, centre, upper = (points[i : i + bands, None] for i in range(3))
    rising, falling = (hertz - lower) / (centre - lower), (upper - hertz) / (upper - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    return torch.hann_window(fft, device=device), filters.to(device)
