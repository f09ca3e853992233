"""Waveforms of different lengths → HuBERT features of one layer, in batches, each exactly as if it had been encoded alone.

Padding reaches a frame in three ways in the usual code, and in none here: the group norm of the first convolution takes its statistics
over each utterance's own frames; what lies behind the end is zero before the convolution of positions; attention doesn't look there.
Then only the order of summation can differ, which moves a unit where two centroids are equally near up to rounding.

Activations are kept time-major, (batch, time, channels), from the first sample to the last layer, so that every convolution of the
front end is a plain matrix product over windows that lie side by side in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import MINIMUM_SAMPLES

Dense = Callable[[Tensor], Tensor]
# What torch.compile emits for a linear layer on a CPU; on some machines twice as fast as the library that torch calls by itself.
ONEDNN_LINEAR = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available()
    else None
)
Moments = tuple[Tensor, Tensor]  # mean and covariance of the windows of the first convolution
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FeatureEncoder:
    """The first `layer` blocks of a HuBERT, ready to run on `device`; no block above is ever computed.

    Args:
        encoder: weights to read; they are copied, `encoder` itself is left alone.
        layer: 1 is the first block.  As in fairseq's `output_layer`, a norm that follows the last block isn't applied.
        precision: fp32, or bf16 for weights and activations (norm statistics stay fp32).
        normalize: bring each waveform to zero mean and unit variance first, as encoders of fairseq's large kind expect.
    """

    def __init__(
        self,
        encoder: HubertModel,
        layer: int,
        device: str = "cpu",
        precision: str = "fp32",
        normalize: bool = False,
    ):
        config = encoder.config
        if not 1 <= layer <= config.num_hidden_layers:
            raise UserError(
                f"the encoder has layers 1 to {config.num_hidden_layers}, layer {layer} was asked for: change units.layer"
            )
        if precision not in PRECISIONS:
            raise UserError(
                f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}"
            )
        self.device, self.dtype, self.layer, self.normalize = (
            torch.device(device),
            PRECISIONS[precision],
            layer,
            normalize,
        )
        self.pre_norm = config.do_stable_layer_norm
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.convolutions = [self._convolution(c) for c in encoder.feature_extractor.conv_layers]
        projection = encoder.feature_projection
        self.input_norm = (
            self._norm(projection.layer_norm) if hasattr(projection, "layer_norm") else None
        )
        self.project = self._dense(projection.projection.weight, projection.projection.bias)
        self.position = self._position(encoder.encoder.pos_conv_embed.conv)
        self.encoder_norm = self._norm(encoder.encoder.layer_norm)
        self.blocks = [self._block(block) for block in encoder.encoder.layers[:layer]]

    @torch.inference_mode()
    def __call__(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """float32 waves (samples,) at 16 kHz, each of 400 samples or more → one (frames, width) tensor in float32 a wave, on the device."""
        lengths = [len(wave) for wave in waves]
        if not waves or min(lengths) < MINIMUM_SAMPLES:
            shortest = min(lengths, default=0)
            raise UserError(
                f"audio of {shortest} samples is too short: units need at least {MINIMUM_SAMPLES} (25 ms at 16 kHz)"
            )
        batch = torch.zeros(len(waves), max(lengths))
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = self.samples(wave)
        hidden, frames = self.front_end(batch.to(self.device), lengths)
        hidden = self.transform(hidden, frames)
        return [h[:n].float() for h, n in zip(hidden, frames, strict=True)]

    def samples(self, wave: np.ndarray) -> Tensor:
        """A waveform as the encoder wants it: float32 (samples,)."""
        samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        return F.layer_norm(samples, samples.shape) if self.normalize else samples

    def front_end(
        self, x: Tensor, lengths: list[int], moments: Moments | None = None
    ) -> tuple[Tensor, list[int]]:
        """(batch, samples) in float32 with the true lengths → (batch, frames, width) and the true numbers of frames.

        `moments` replaces those that the first norm would take from `x`, for audio that comes in pieces.
        """
        x = x[..., None]
        for convolution, kernel, stride in self.convolutions:
            lengths = [(n - kernel) // stride + 1 for n in lengths]
            x = convolution(windows(x, kernel, stride), lengths, moments)
        return self.project(x if self.input_norm is None else self.input_norm(x)), lengths

    def transform(self, hidden: Tensor, frames: list[int]) -> Tensor:
        """(batch, frames, width) → the same shape after `layer` blocks; attention stays within each row's own `frames`."""
        mask = None
        if min(frames) < hidden.shape[1]:
            inside = (
                torch.arange(hidden.shape[1], device=self.device)
                < torch.tensor(frames, device=self.device)[:, None]
            )
            hidden = hidden * inside[..., None]
            mask = inside[:, None, None]
        hidden = hidden + self.position(hidden)
        if not self.pre_norm:
            hidden = self.encoder_norm(hidden)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden

    # --- the parts, each turned from the weights of one module into a function -----------------------------------------------------
    def _tensor(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self.device, self.dtype)

    def _dense(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Dense:
        """x (…, in) → (…, out), followed by GELU if asked for."""
        weight, bias = self._tensor(weight), None if bias is None else self._tensor(bias)
        if self.device.type == "cpu" and ONEDNN_LINEAR is not None:
            activation = ("gelu", [], "none") if gelu else ("none", [], "")
            return lambda x: ONEDNN_LINEAR(x, weight, bias, *activation)
        return lambda x: F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)

    def _norm(self, module: nn.LayerNorm) -> Dense:
        weight, bias = self._tensor(module.weight), self._tensor(module.bias)
        return lambda x: F.layer_norm(x, weight.shape, weight, bias, module.eps)

    def _convolution(
        self, module: nn.Module
    ) -> tuple[Callable[[Tensor, list[int], Moments | None], Tensor], int, int]:
        """One layer of the front end: convolution, norm if it has one, GELU."""
        conv, norm = module.conv, getattr(module, "layer_norm", None)
        weight = conv.weight.permute(0, 2, 1).flatten(1)
        if isinstance(norm, nn.GroupNorm):
            parts = [t.detach().to(self.device) for t in (weight, norm.weight, norm.bias)]

            def layer(x: Tensor, lengths: list[int], moments: Moments | None) -> Tensor:
                return F.gelu(
                    normed_convolution(x, moments or window_moments(x, lengths), *parts, norm.eps)
                ).to(self.dtype)
        elif norm is not None:
            dense, normalise = self._dense(weight, conv.bias), self._norm(norm)

            def layer(x: Tensor, lengths: list[int], moments: Moments | None) -> Tensor:
                return F.gelu(normalise(dense(x.to(self.dtype))))
        else:
            dense = self._dense(weight, conv.bias, gelu=True)

            def layer(x: Tensor, lengths: list[int], moments: Moments | None) -> Tensor:
                return dense(x)

        return layer, conv.kernel_size[0], conv.stride[0]

    def _position(self, conv: nn.Conv1d) -> Dense:
        """The grouped convolution over 128 frames that tells the blocks where they are, as a 2-d one in the layout that time-major is."""
        weight = self._tensor(conv.weight)[:, :, None].contiguous(memory_format=torch.channels_last)
        bias, width, groups = self._tensor(conv.bias), conv.kernel_size[0], conv.groups

        def position(x: Tensor) -> Tensor:
            with torch.backends.cudnn.flags(
                enabled=True, allow_tf32=False
            ):  # by default a GPU rounds a convolution's input to 10 bits
                y = F.conv2d(
                    x.transpose(1, 2)[:, :, None],
                    weight,
                    bias,
                    padding=(0, width // 2),
                    groups=groups,
                )
            return F.gelu(y[:, :, 0, : x.shape[1]].transpose(1, 2))

        return position

    def _block(self, module: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
        attention, forward = module.attention, module.feed_forward
        joined = [
            torch.cat(
                [getattr(p, kind) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
            )
            for kind in ("weight", "bias")
        ]
        queries_keys_values, output = (
            self._dense(*joined),
            self._dense(attention.out_proj.weight, attention.out_proj.bias),
        )
        widen = self._dense(
            forward.intermediate_dense.weight, forward.intermediate_dense.bias, gelu=True
        )
        narrow = self._dense(forward.output_dense.weight, forward.output_dense.bias)
        first, second = self._norm(module.layer_norm), self._norm(module.final_layer_norm)

        def attend(x: Tensor, mask: Tensor | None) -> Tensor:
            q, k, v = (
                queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            )
            return output(attention_of(q, k, v, mask).transpose(1, 2).flatten(2))

        def before(x: Tensor, mask: Tensor | None) -> Tensor:
            x = x + attend(first(x), mask)
            return x + narrow(widen(second(x)))

        def after(x: Tensor, mask: Tensor | None) -> Tensor:
            x = first(x + attend(x, mask))
            return second(x + narrow(widen(x)))

        return before if self.pre_norm else after


def attention_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q·k / √width)·v over (batch, heads, frames, width); `mask` says where to look.

    torch's fused attention doesn't use a CPU's bf16 instructions: up to 40 s, written out, it is twice as fast; beyond, the scores
    would take too much memory.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] > 2000:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(batch, time, channels), contiguous → (batch, windows, kernel · channels): each window's samples side by side, time first."""
    batch, time, channels = x.shape
    count = (time - kernel) // stride + 1
    return x.as_strided(
        (batch, count, kernel * channels), (time * channels, stride * channels, 1)
    ).contiguous()


def window_moments(x: Tensor, lengths: list[int]) -> Moments:
    """Mean (batch, kernel) and covariance (batch, kernel, kernel), float64, of the first `lengths` windows of x (batch, time, kernel)."""
    counts = torch.tensor(lengths, device=x.device, dtype=torch.float64)
    sums = [
        (row.sum(0), row.T @ row)
        for row in (r[:n].double() for r, n in zip(x, lengths, strict=True))
    ]
    return moments_of(counts, *map(torch.stack, zip(*sums, strict=True)))


def moments_of(count: Tensor, total: Tensor, products: Tensor) -> Moments:
    """Sums of windows (batch, kernel) and of their outer products (batch, kernel, kernel) → mean and covariance."""
    mean = total / count[:, None]
    return mean, products / count[:, None, None] - mean[:, :, None] * mean[:, None, :]


def normed_convolution(
    x: Tensor, moments: Moments, weight: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """Convolution and group norm with one channel a group, in one product.

    The mean and variance over time of what a convolution w gives follow from the mean m and the covariance C of its windows: w·m and
    w·C·w.  So the norm is known before the convolution is run, and goes into its weights.  A bias of the convolution would cancel out.

    x: windows (batch, time, kernel) of one input channel in float32; weight (channels, kernel) → (batch, time, channels).
    """
    mean, covariance = moments
    wide = weight.double()
    variance = torch.einsum("ck,bkl,cl->bc", wide, covariance, wide).clamp(min=0)
    factor = scale * torch.rsqrt(variance + eps)
    offset = shift - factor * (mean @ wide.T)
    return torch.baddbmm(
        offset.float()[:, None], x, (wide * factor[..., None]).float().transpose(1, 2)
    )
