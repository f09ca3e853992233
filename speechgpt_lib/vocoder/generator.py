"""Units at 50 Hz → waveform at 16 kHz: the HiFi-GAN generator (Kong et al. 2020, arXiv 2010.05646) on unit embeddings.

    units (batch, frames) → embedding → conv → 5 × [transposed conv, residual blocks] → conv → (batch, frames · 320)

Names and order of the layers are those of fairseq's `CodeGenerator` (`dict`, `conv_pre`, `ups`, `resblocks`,
`conv_post`), hence after folding the weight norm a published checkpoint and this module have the same keys.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import VocoderSettings

HOP, SAMPLE_RATE = 320, 16_000
SLOPE = 0.1  # of every leaky ReLU but the last, which fairseq leaves at torch's default


class ResidualBlock(nn.Module):
    """HiFi-GAN's residual block 1: per dilation a dilated and a plain convolution, with a shortcut around each pair."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList([_conv(channels, channels, kernel, dilation) for dilation in dilations])
        self.convs2 = nn.ModuleList([_conv(channels, channels, kernel) for _ in dilations])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, time) → the same shape."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(leaky_relu(dilated(leaky_relu(x, SLOPE)), SLOPE))
        return x


class UnitGenerator(nn.Module):
    """The generator; geometry as published (512 channels, rates 5·4·4·2·2) when `settings` are left at their defaults.

    unit_count: K, ids 0 … K − 1.  Each stage halves the channels; convolutions carry weight norm until it is folded.
    Raises UserError for a geometry that cannot be built.
    """

    def __init__(self, unit_count: int, settings: VocoderSettings):
        super().__init__()
        check_geometry(settings)
        width, rates, kernels = settings.channels, settings.upsample_rates, settings.upsample_kernels
        self.unit_count = unit_count
        self.dict = nn.Embedding(unit_count, settings.embedding)
        self.conv_pre = _conv(settings.embedding, width, 7)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(rates, kernels, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            width //= 2
            for size, dilations in zip(settings.resblock_kernels, settings.resblock_dilations, strict=True):
                self.resblocks.append(ResidualBlock(width, size, dilations))
        self.conv_post = _conv(width, 1, 7)

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        """units (batch, frames) int64, one id a frame → waves (batch, frames · 320) in (−1, 1)."""
        x = self.conv_pre(self.dict(units).transpose(1, 2))
        parallel = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            x = up(leaky_relu(x, SLOPE))
            blocks = self.resblocks[stage * parallel : (stage + 1) * parallel]
            x = sum(block(x) for block in blocks) / parallel
        return torch.tanh(self.conv_post(leaky_relu(x)))[:, 0]

    def fold_weight_norm(self) -> UnitGenerator:
        """Replace each g · v/‖v‖ by the plain weight it stands for, in place: faster, but can't be trained on as it was."""
        for module in list(self.modules()):
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")
        return self


def check_geometry(settings: VocoderSettings) -> None:
    """Refuse settings whose layers would not give exactly 320 samples a frame."""
    halvings = 2 ** len(settings.upsample_rates)
    if settings.channels % halvings:
        raise UserError(
            f"vocoder.channels is {settings.channels}, but {len(settings.upsample_rates)} stages halve it each: "
            f"take a multiple of {halvings}, or fewer upsample_rates"
        )
    for rate, kernel in zip(settings.upsample_rates, settings.upsample_kernels, strict=True):
        if kernel < rate or (kernel - rate) % 2:
            raise UserError(
                f"vocoder.upsample_kernels: a kernel of {kernel} cannot upsample by exactly {rate}: "
                f"take {rate}, {rate + 2}, … ({2 * rate + rate % 2} is usual)"
            )
    if even := [kernel for kernel in settings.resblock_kernels if kernel % 2 == 0]:
        raise UserError(f"vocoder.resblock_kernels holds {even[0]}: kernels must be odd, so that the length stays as it is")


def _conv(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Module:
    return weight_norm(nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2))
