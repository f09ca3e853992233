"""Units at 50 Hz → waveform at 16 kHz: the HiFi-GAN generator on unit embeddings.

    units (batch, frames) → embedding → conv → 5 × [upsampling, residual blocks] → conv → waves

Source: Kong et al. 2020, arXiv 2010.05646.  Layers are named as in fairseq's `CodeGenerator`.

Two settings make it cheaper.  With `inverse_stft_hop` the last stages are left out: the last
convolution gives the magnitude and phase of a short-time spectrum, which an inverse Fourier
transform turns into sound (iSTFTNet: Kaneko et al. 2022, arXiv 2203.02395).  `frame_blocks` look
around widely at 50 Hz, where a step is a whole unit, before anything is upsampled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, fold, gelu, leaky_relu, leaky_relu_
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import VocoderSettings

LOUDEST = 6.0  # log magnitude of a spectrum's bin, lest an early step explode
SLOPE = 0.1  # of every leaky ReLU but the last, which fairseq leaves at torch's default


class Conv(nn.Conv1d):
    """A convolution over the time of (batch, channels, 1, time), odd kernel, length unchanged.

    Speech is treated as an image of one row: images can lie in memory with their channels last,
    and so a CPU convolves them in two thirds of `Conv1d`'s time (benchmarks/vocoder.py).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1):
        padding, more = (kernel - 1) * dilation // 2, {"dilation": dilation, "groups": groups}
        super().__init__(inputs, outputs, kernel, padding=padding, **more)

    def forward(self, x: Tensor, padding: int | None = None) -> Tensor:
        """(batch, inputs, 1, time) → (batch, outputs, 1, time); `padding` 0 shortens the time."""
        padding = self.padding[0] if padding is None else padding
        weight, dilation = self.weight[:, :, None], (1, *self.dilation)
        return conv2d(x, weight, self.bias, 1, (0, padding), dilation, self.groups)


class Upsample(nn.ConvTranspose1d):
    """A transposed convolution: (batch, channels, 1, time) gets `rate` times as long."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int):
        super().__init__(inputs, outputs, kernel, rate, padding=(kernel - rate) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, 1, time) → (batch, outputs, 1, time · rate)."""
        stride, padding = (1, *self.stride), (0, *self.padding)
        return conv_transpose2d(x, self.weight[:, :, None], self.bias, stride, padding)

    def spread(self, x: Tensor) -> Tensor:
        """The same untrimmed and without bias, which a stream needs: pieces of it add up."""
        return conv_transpose2d(x, self.weight[:, :, None], stride=(1, *self.stride))


class InverseSTFT(nn.Module):
    """Short-time spectra → waves: windowed inverse Fourier transforms that overlap by 3/4 and add.

    It has no weights, and the window's share of the sum is constant but for the first and last
    `padding` samples, which the neighbours that they lack leave softer.
    """

    bias = None

    def __init__(self, hop: int):
        super().__init__()
        self.fft = 4 * hop
        self.kernel_size, self.stride = (self.fft,), (hop,)
        self.padding, self.out_channels = ((self.fft - hop) // 2,), 1

    def forward(self, x: Tensor) -> Tensor:
        """Real, then imaginary parts (batch, fft + 2, 1, time) → (batch, 1, 1, time · hop)."""
        trim = self.padding[0]
        return self.spread(x)[..., trim : -trim or None]

    def spread(self, x: Tensor) -> Tensor:
        """The same untrimmed: (batch, 1, 1, (time − 1) · hop + fft)."""
        spectrum = torch.complex(*x[:, :, 0].float().chunk(2, dim=1))  # (batch, fft / 2 + 1, time)
        window = torch.hann_window(self.fft, device=x.device)[:, None] / 2  # four of them sum to 1
        frames = torch.fft.irfft(spectrum, self.fft, dim=1) * window
        length = (x.shape[3] - 1) * self.stride[0] + self.fft
        return fold(frames, (1, length), (1, self.fft), stride=(1, self.stride[0]))


class Rows:
    """How layers are applied to whole utterances, the rows of a padded batch.

    A convolution at the end of an utterance sees zeros behind it.  In a padded batch it would see
    what earlier layers made of the padding, so that is set to 0 before every layer.  Another way
    is `streaming.GeneratorStream`.
    """

    def __init__(self, frames: Tensor | None = None, width: int = 0):
        """frames (batch,): how many of `width` are each row's own, None: all of them."""
        self.frames, self.width = frames, width
        self.shortest = width if frames is None else int(frames.min())

    def conv(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What a layer makes of x (batch, channels, 1, time), with zeros behind each row's end."""
        if self.shortest < self.width:
            rate = x.shape[3] // self.width
            positions = torch.arange(self.shortest * rate, x.shape[3], device=x.device)
            inside = positions < self.frames[:, None] * rate  # (batch, time behind the shortest)
            x[..., self.shortest * rate :] *= inside[:, None, None]
        return layer(x)

    up = conv

    def meet(self, place: nn.Module, *parts: Tensor) -> tuple[Tensor, ...]:
        """Results that are to be added; a stream cuts them to what all of them have."""
        return parts


WHOLE = Rows()


class ResidualBlock(nn.Module):
    """HiFi-GAN's residual block 1: a shortcut around each pair of a dilated and a plain conv."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        dilated = [weight_norm(Conv(channels, channels, kernel, d)) for d in dilations]
        plain = [weight_norm(Conv(channels, channels, kernel)) for _ in dilations]
        self.convs1, self.convs2 = nn.ModuleList(dilated), nn.ModuleList(plain)

    def forward(self, x: Tensor, way: Rows) -> Tensor:
        """(batch, channels, 1, time) → the same shape."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            inner = way.conv(dilated, leaky_relu(x, SLOPE))
            inner, x = way.meet(plain, way.conv(plain, leaky_relu_(inner, SLOPE)), x)
            x = inner.add_(x)
        return x


class FrameBlock(nn.Module):
    """A wide look at little cost (ConvNeXt: Liu et al. 2022, arXiv 2201.03545; Siuzdak 2023).

    A convolution of each channel by itself, then two layers on each frame by itself, around which
    there is a shortcut.
    """

    def __init__(self, channels: int, kernel: int = 7, wider: int = 3):
        super().__init__()
        self.depthwise = Conv(channels, channels, kernel, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, wider * channels)
        self.project = nn.Linear(wider * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.2))

    def forward(self, x: Tensor, way: Rows) -> Tensor:
        """(batch, channels, 1, time) → the same shape."""
        inner, x = way.meet(self, way.conv(self.depthwise, x), x)
        inner = self.norm(inner.permute(0, 2, 3, 1))  # (batch, 1, time, channels)
        inner = self.scale * self.project(gelu(self.expand(inner)))
        return x + inner.permute(0, 3, 1, 2)


class UnitGenerator(nn.Module):
    """The generator; `settings` at their defaults are the published geometry.

    unit_count: K, ids 0 … K − 1.  speakers: with several, a vector for each is put beside that of
    every frame (the released vocoder has a single voice).  Each stage halves the channels.
    Raises UserError for a geometry whose layers would not give as many samples to every frame.
    """

    def __init__(self, unit_count: int, settings: VocoderSettings, speakers: int = 0):
        super().__init__()
        width, embedding, stages = settings.channels, settings.embedding, settings.upsample_rates
        if width % (least := 2 ** len(stages)):
            found = f"vocoder.channels is {width}, but {len(stages)} stages halve it"
            raise UserError(f"{found}: take a multiple of {least}, or fewer upsample_rates")
        if even := [kernel for kernel in settings.resblock_kernels if kernel % 2 == 0]:
            raise UserError(f"vocoder.resblock_kernels holds {even[0]}: kernels must be odd")
        blocks = list(zip(settings.resblock_kernels, settings.resblock_dilations, strict=True))
        self.hop = settings.hop  # samples that a frame becomes
        self.dict = nn.Embedding(unit_count, embedding)
        self.spkr = nn.Embedding(speakers, embedding) if speakers else None
        self.conv_pre = weight_norm(Conv(embedding * (2 if speakers else 1), width, 7))
        self.frames = nn.ModuleList(FrameBlock(width) for _ in range(settings.frame_blocks))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(stages, settings.upsample_kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                what = f"{kernel} cannot upsample by exactly {rate}: take {rate}, {rate + 2}, …"
                raise UserError(f"vocoder.upsample_kernels: {what}")
            self.ups.append(weight_norm(Upsample(width, width // 2, kernel, rate)))
            width //= 2
            self.resblocks.extend(ResidualBlock(width, *block) for block in blocks)
        self.istft = InverseSTFT(hop) if (hop := settings.inverse_stft_hop) else None
        bins = self.istft.fft + 2 if self.istft else 0  # magnitudes, phases
        self.norm = nn.LayerNorm(width) if self.istft else None
        self.conv_post = weight_norm(Conv(width, bins, 1) if bins else Conv(width, 1, 7))

    def stages(self) -> list[tuple[Upsample, list[ResidualBlock]]]:
        """Each upsampling layer with the residual blocks that follow it side by side."""
        n, blocks = len(self.resblocks) // max(1, len(self.ups)), list(self.resblocks)
        return [(up, blocks[i * n : (i + 1) * n]) for i, up in enumerate(self.ups)]

    def forward(self, units: Tensor, speakers: Tensor | None = None, way: Rows = WHOLE) -> Tensor:
        """units (batch, frames) int64, one id a frame → waves (batch, frames · hop) in [−1, 1].

        speakers: ids (batch,), where the generator knows several.  way: how layers are applied; by
        `Rows` a shorter row sounds as if alone, and its padding means nothing.
        """
        x = self.dict(units)  # (batch, frames, embedding)
        if self.spkr is not None:
            x = torch.cat([x, self.spkr(speakers)[:, None].expand(-1, x.shape[1], -1)], dim=2)
        x = x[:, None].permute(0, 3, 1, 2)  # (batch, embedding, 1, frames), channels last
        x = way.conv(self.conv_pre, x if x.device.type == "cpu" else x.contiguous())
        for block in self.frames:
            x = block(x, way)
        for up, blocks in self.stages():
            x = way.up(up, leaky_relu_(x, SLOPE))  # half the channels, `rate` × the time
            x = sum(way.meet(up, *(block(x, way) for block in blocks))) / len(blocks)
        if self.istft is None:
            return torch.tanh(way.conv(self.conv_post, leaky_relu_(x))).flatten(1)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        louder, phase = way.conv(self.conv_post, x).float().chunk(2, dim=1)
        magnitude = torch.exp(louder.clamp(max=LOUDEST))
        parts = torch.cat([magnitude * torch.cos(phase), magnitude * torch.sin(phase)], dim=1)
        return way.up(self.istft, parts).clamp(-1, 1).flatten(1)

    def fold_weight_norm(self) -> UnitGenerator:
        """Replace each g · v/‖v‖ by the plain weight it stands for, in place.

        Faster, but not to be trained on.  Input channels come last in memory, as CPUs want them.
        """
        for module in list(self.modules()):
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")
            if isinstance(module, Conv | Upsample) and not module.weight.is_meta:
                module.weight.data = module.weight.data.transpose(1, 2).contiguous().transpose(1, 2)
        return self
