"""Waveform → scores and inner features: HiFi-GAN's judges of real against made speech.

Source: Kong et al. 2020, section 2.3.  The multi-period discriminators fold the wave into rows of
2, 3, 5, 7 or 11 samples and look down the columns; the multi-scale ones (from MelGAN) look at the
wave as it is, at half and at a quarter of its rate.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, pad
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

PERIODS = (2, 3, 5, 7, 11)
SCALES = 3
SLOPE = 0.1

Judgement = tuple[Tensor, list[Tensor]]  # scores, features of every layer


class PeriodDiscriminator(nn.Module):
    """One period; layers are 1, 4, 16, 32, 32 times `channels` wide (published: 32)."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        widths = [1, *(channels * factor for factor in (1, 4, 16, 32, 32))]
        self.convs = nn.ModuleList()
        for (a, b), stride in zip(pairwise(widths), (3, 3, 3, 3, 1), strict=True):
            self.convs.append(weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), padding=(2, 0))))
        self.conv_post = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waves: Tensor) -> Judgement:
        """waves (batch, samples) → scores (batch, …) and the features of every layer."""
        missing = -waves.shape[1] % self.period
        waves = pad(waves[:, None], (0, missing), "reflect")
        rows = waves.unflatten(2, (-1, self.period))  # (batch, 1, samples / period, period)
        return _judge(rows, self.convs, self.conv_post)


class ScaleDiscriminator(nn.Module):
    """One scale: layers are 4, 4, 8, 16, 32, 32, 32 times `channels` wide (published: 32)."""

    def __init__(self, channels: int, normalise):
        super().__init__()
        widths = [1, *(channels * factor for factor in (4, 4, 8, 16, 32, 32, 32))]
        kernels, strides = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1)
        groups = (1, 4, 16, 16, 16, 16, 1)
        layers = zip(pairwise(widths), kernels, strides, groups, strict=True)
        self.convs = nn.ModuleList()
        for (a, b), kernel, stride, group in layers:
            group = math.gcd(group, a, b)  # narrow layers have fewer channels than groups
            conv = nn.Conv1d(a, b, kernel, stride, padding=kernel // 2, groups=group)
            self.convs.append(normalise(conv))
        self.conv_post = normalise(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waves: Tensor) -> Judgement:
        """waves (batch, samples) → scores (batch, …) and the features of every layer."""
        return _judge(waves[:, None], self.convs, self.conv_post)


class Discriminators(nn.Module):
    """All of them: waves (batch, samples) → a judgement each, periods first, then scales."""

    def __init__(self, channels: int):
        super().__init__()
        self.periods = nn.ModuleList([PeriodDiscriminator(period, channels) for period in PERIODS])
        # As published, the one that sees the full rate is held back by spectral norm.
        norms = [spectral_norm] + [weight_norm] * (SCALES - 1)
        self.scales = nn.ModuleList([ScaleDiscriminator(channels, norm) for norm in norms])

    def forward(self, waves: Tensor) -> list[Judgement]:
        """waves (batch, samples) → one (scores, features) a discriminator."""
        judgements = [period(waves) for period in self.periods]
        for scale in self.scales:
            judgements.append(scale(waves))
            waves = avg_pool1d(waves[:, None], 4, 2, padding=2)[:, 0]  # half the rate
        return judgements


def _judge(x: Tensor, convs: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    for conv in convs:
        x = leaky_relu(conv(x), SLOPE)
        features.append(x)
    scores = last(x)
    return scores.flatten(1), [*features, scores]
