"""Waveform → scores and inner features: HiFi-GAN's judges of real against made speech.

Source: Kong et al. 2020, section 2.3.  The multi-period discriminators fold the wave into rows of
2, 3, 5, 7 or 11 samples and look down the columns; the multi-scale ones (from MelGAN) look at the
wave as it is, at half and at a quarter of its rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, pad
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

PERIODS = (2, 3, 5, 7, 11)
SLOPE = 0.1
# Widths (times `channels`, published: 32), kernels, strides and groups of the layers.
COLUMN_LAYERS = ((1, 4, 16, 32, 32), (5, 5, 5, 5, 5), (3, 3, 3, 3, 1), (1, 1, 1, 1, 1))
WAVE_LAYERS = (
    (4, 4, 8, 16, 32, 32, 32),
    (15, 41, 41, 41, 41, 41, 5),
    (1, 2, 2, 4, 4, 1, 1),
    (1, 4, 16, 16, 16, 16, 1),
)

Judgement = tuple[Tensor, list[Tensor]]  # scores, features of every layer


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
        x = waves[:, None]
        if self.period:
            x = pad(x, (0, -waves.shape[1] % self.period), "reflect")
            x = x.unflatten(2, (-1, self.period))  # (batch, 1, samples / period, period)
        features = []
        for conv in self.convs:
            x = leaky_relu(conv(x), SLOPE)
            features.append(x)
        scores = self.conv_post(x)
        return scores.flatten(1), [*features, scores]


class Discriminators(nn.Module):
    """All of them: waves (batch, samples) → a judgement each, periods first, then scales."""

    def __init__(self, channels: int):
        super().__init__()
        periods = [Discriminator(channels, weight_norm, period) for period in PERIODS]
        # As published, the one that sees the full rate is held back by spectral norm.
        scales = [Discriminator(channels, n) for n in (spectral_norm, weight_norm, weight_norm)]
        self.periods, self.scales = nn.ModuleList(periods), nn.ModuleList(scales)

    def forward(self, waves: Tensor) -> list[Judgement]:
        """waves (batch, samples) → one (scores, features) a discriminator."""
        judgements = [period(waves) for period in self.periods]
        for scale in self.scales:
            judgements.append(scale(waves))
            waves = avg_pool1d(waves[:, None], 4, 2, padding=2)[:, 0]  # half the rate
        return judgements
