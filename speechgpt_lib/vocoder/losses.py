"""Waves → the losses of the vocoder: how far the sound is off, how real it seems to discriminators.

Every loss is a mean in which each wave counts the same, so processes may share a batch.  HiFi-GAN's
discriminators (Kong et al. 2020, section 2.3) fold the wave into rows of 2, 3, 5, 7 or 11 samples
and look down the columns, or (from MelGAN) at the wave as it is, at half and a quarter of its rate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, l1_loss, leaky_relu, pad
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

RESOLUTIONS = ((1024, 80), (512, 60), (256, 30))  # samples (the hop is a quarter), mel bands
FLOOR = 1e-4  # of mel magnitudes: about what rounding to 16 bits leaves
CONVERGENCE_WEIGHT = 0.3
PERIODS, SLOPE = (2, 3, 5, 7, 11), 0.1
# Widths (times `channels`, published: 32), kernels, strides and groups of the layers.
COLUMN_LAYERS = ((1, 4, 16, 32, 32), (5, 5, 5, 5, 5), (3, 3, 3, 3, 1), (1, 1, 1, 1, 1))
WAVE_LAYERS = (
    (4, 4, 8, 16, 32, 32, 32),
    (15, 41, 41, 41, 41, 41, 5),
    (1, 2, 2, 4, 4, 1, 1),
    (1, 4, 16, 16, 16, 16, 1),
)

Judgement = tuple[Tensor, list[Tensor]]  # scores, features of every layer


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
        apart, size = (x.flatten(1).norm(dim=1) for x in (ours - theirs, theirs))
        total = total + CONVERGENCE_WEIGHT * (apart / (size + FLOOR)).mean()
    return total / len(RESOLUTIONS)


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


class Discriminator(nn.Module):
    """Convolutions down the columns of rows of `period` samples, or (None) over the wave itself."""

    def __init__(self, channels: int, normalise: Callable, period: int | None = None):
        super().__init__()
        self.period, self.convs, inputs = period, nn.ModuleList(), 1
        layers = COLUMN_LAYERS if period else WAVE_LAYERS
        for factor, kernel, stride, groups in zip(*layers, strict=True):
            outputs = channels * factor
            groups = math.gcd(groups, inputs, outputs)  # narrow layers have fewer channels
            conv = self._convolution(inputs, outputs, kernel, stride, groups)
            self.convs.append(normalise(conv))
            inputs = outputs
        self.conv_post = normalise(self._convolution(inputs, 1, 3))

    def _convolution(self, a: int, b: int, kernel: int, stride: int = 1, groups: int = 1):
        if self.period:
            return nn.Conv2d(a, b, (kernel, 1), (stride, 1), (kernel // 2, 0))
        return nn.Conv1d(a, b, kernel, stride, kernel // 2, groups=groups)

    def forward(self, waves: Tensor) -> Judgement:
        """waves (batch, samples) → scores (batch, …) and the features of every layer."""
        x, features = waves[:, None], []
        if self.period:
            x = pad(x, (0, -waves.shape[1] % self.period), "reflect")
            x = x.unflatten(2, (-1, self.period))  # (batch, 1, samples / period, period)
        for conv in self.convs:
            x = leaky_relu(conv(x), SLOPE)
            features.append(x)
        scores = self.conv_post(x)
        return scores.flatten(1), [*features, scores]


class Discriminators(nn.Module):
    """All of them: waves (batch, samples) → a judgement each, periods first, then scales."""

    def __init__(self, channels: int):
        super().__init__()
        self.periods = nn.ModuleList(Discriminator(channels, weight_norm, p) for p in PERIODS)
        norms = (spectral_norm, weight_norm, weight_norm)  # spectral at the full rate, as published
        self.scales = nn.ModuleList(Discriminator(channels, norm) for norm in norms)

    def forward(self, waves: Tensor) -> list[Judgement]:
        """waves (batch, samples) → one (scores, features) a discriminator."""
        judgements = [period(waves) for period in self.periods]
        for scale in self.scales:
            judgements.append(scale(waves))
            waves = avg_pool1d(waves[:, None], 4, 2, padding=2)[:, 0]  # half the rate
        return judgements


def discriminator_loss(judged: list[Judgement], count: int) -> Tensor:
    """Least squares GAN (HiFi-GAN, equation 1): `count` real waves should score 1, the made 0."""
    return sum((1 - s[:count]).square().mean() + s[count:].square().mean() for s, _ in judged)


def generator_loss(made: list[Judgement]) -> Tensor:
    """Made speech should score 1 (equation 2)."""
    return sum((1 - scores).square().mean() for scores, _ in made)


def feature_matching_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """L1 distance between what the discriminators' layers see in real and made speech (eq. 4)."""
    seen = [zip(a, b, strict=True) for (_, a), (_, b) in zip(real, made, strict=True)]
    return sum(l1_loss(ours, theirs.detach()) for layers in seen for theirs, ours in layers)
