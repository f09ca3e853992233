"""Waveforms of different lengths → HuBERT features of one layer, in batches, each as if alone.

Padding reaches no frame: the group norm of the first convolution takes its statistics over each
utterance's own frames; what lies behind the end is zero before the convolution of positions, and
attention doesn't look there.  Only the order of summation differs: it moves a unit where two
centroids are equally near up to rounding.  All is time-major, (batch, time, channels), so that the
front end's convolutions are matrix products over windows that lie side by side in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.runs.machine import cpu_facts

Dense = Callable[[Tensor], Tensor]
Sums = Sequence[Tensor]  # what `window_sums` gives for the first convolution
QUIET, LEVEL = 0.045, 0.1  # a wave of a smaller root mean square is brought to this one
KIND = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "conv_pos_batch_norm": False}
AT_ONCE = 16  # frames that one row of the convolution of positions gives on a GPU
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def fast_linear(dtype: torch.dtype) -> Callable | None:
    """torch.compile's linear layer on a CPU: on some twice as fast as torch's own; or None."""
    usable = torch.backends.mkldnn.is_available()
    if usable and dtype == torch.bfloat16:
        usable = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if usable else None


def has_amx() -> bool:
    """Whether this CPU has AMX, with which oneDNN's grouped convolutions in bf16 are wrong where a
    group has few channels (8 and 10 are, 16, 20 and 48 not; torch 2.11, a Xeon of model 207)."""
    return "amx_bf16" in cpu_facts()["extensions"]


class FeatureEncoder:
    """The first `layer` blocks of a HuBERT, ready to run on `device`; none above is computed.

    `encoder` is left alone.  Layer 1 is the first block; a norm that follows the last block isn't
    applied, as in fairseq's `output_layer`.  With `bf16` weights and activations are bfloat16, norm
    statistics float32.  `normalize` brings each wave to zero mean and unit variance first.

    A published encoder gets its waves as its authors gave them.  In our own (pre-norm blocks on a
    group norm, which no published one has) a quiet wave is made louder: beside its variance the
    epsilon of the group norm would be no trifle.
    """

    def __init__(
        self,
        encoder: transformers.HubertModel,
        layer: int,
        device="cpu",
        precision="fp32",
        normalize=False,
    ):
        config, projection = encoder.config, encoder.feature_projection
        check_layer(layer, config.num_hidden_layers)
        check_kind(config)
        check_choice("precision", precision, PRECISIONS)
        self.device, self.dtype = torch.device(device), PRECISIONS[precision]
        self.normalize, self.pre_norm = normalize, config.do_stable_layer_norm
        self.levels = self.pre_norm and config.feat_extract_norm == "group" and not normalize
        self.heads = config.num_attention_heads
        self.linear = fast_linear(self.dtype) if self.device.type == "cpu" else None
        self.hop, self.window = framing(config)
        self.convolutions = [self._convolution(c) for c in encoder.feature_extractor.conv_layers]
        has_norm = hasattr(projection, "layer_norm")
        self.input_norm = self._norm(projection.layer_norm) if has_norm else nn.Identity()
        self.project = self._dense(projection.projection)
        self.position = self._position(encoder.encoder.pos_conv_embed.conv)
        self.encoder_norm = self._norm(encoder.encoder.layer_norm)
        self.blocks = [self._block(block) for block in encoder.encoder.layers[:layer]]

    @torch.inference_mode()
    def __call__(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """float32 waves (samples,) at 16 kHz → (frames, width) float32 each, on the device."""
        lengths = [len(wave) for wave in waves]
        check_length(min(lengths, default=0), self.window)
        batch = torch.zeros(len(waves), max(lengths))
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = self.samples(wave)
        hidden, frames = self.front_end(batch.to(self.device), lengths)
        rows = zip(self.transform(hidden, frames), frames, strict=True)
        return [row[:n].float() for row, n in rows]

    def single(self, wave: np.ndarray) -> np.ndarray:
        """Features (frames, width) of one wave, on the CPU."""
        return self([wave])[0].cpu().numpy()

    def samples(self, wave: np.ndarray) -> Tensor:
        """A waveform as the encoder wants it: float32 (samples,)."""
        samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        if self.normalize:
            return F.layer_norm(samples, samples.shape)
        level = samples.std(correction=0) if self.levels else LEVEL  # a constant doesn't count
        if 1e-6 < level < QUIET:
            samples = (samples - samples.mean()) * (LEVEL / level)
        return samples

    def front_end(
        self, x: Tensor, lengths: list[int], sums: Sums | None = None
    ) -> tuple[Tensor, list[int]]:
        """(batch, samples) float32 of true `lengths` → (batch, frames, width), true frame counts.

        For audio in pieces, `sums` are the `window_sums` of all of it, for the first norm.
        """
        x = x[..., None]
        for convolution, kernel, stride in self.convolutions:
            lengths = [(n - kernel) // stride + 1 for n in lengths]
            x = convolution(windows(x, kernel, stride), lengths, sums)
        return self.project(self.input_norm(x)), lengths

    def transform(self, hidden: Tensor, frames: list[int]) -> Tensor:
        """(batch, frames, width) → that after `layer` blocks; attention minds a row's `frames`."""
        mask = None
        if min(frames) < hidden.shape[1]:
            own = torch.tensor(frames, device=self.device)[:, None]
            inside = torch.arange(hidden.shape[1], device=self.device) < own  # (batch, frames)
            hidden = hidden * inside[..., None]
            mask = inside[:, None, None]
        hidden = hidden + self.position(hidden)
        if not self.pre_norm:
            hidden = self.encoder_norm(hidden)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden

    def _tensor(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self.device, self.dtype)

    def _dense(self, module: nn.Module | SimpleNamespace, gelu: bool = False) -> Dense:
        """A linear layer, or a convolution over windows, and GELU or not: x (…, in) → (…, out)."""
        weight = self._tensor(module.weight.movedim(1, -1).flatten(1))  # (out, kernel · in)
        bias = None if module.bias is None else self._tensor(module.bias)
        if self.linear is not None:
            activation = ("gelu", [], "none") if gelu else ("none", [], "")
            return lambda x: self.linear(x, weight, bias, *activation)
        return lambda x: F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)

    def _norm(self, module: nn.LayerNorm) -> Dense:
        weight, bias = self._tensor(module.weight), self._tensor(module.bias)
        return lambda x: F.layer_norm(x, weight.shape, weight, bias, module.eps)

    def _convolution(self, module: nn.Module) -> tuple[Callable[..., Tensor], int, int]:
        """One layer of the front end (convolution, a norm or none, GELU), its kernel and stride."""
        conv, norm = module.conv, getattr(module, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            parts = conv.weight.movedim(1, -1).flatten(1), norm.weight, norm.bias
            parts = [part.detach().to(self.device) for part in parts]

            def layer(x: Tensor, lengths: list[int], sums: Sums | None) -> Tensor:
                sums = sums or window_sums(x, lengths)
                return F.gelu(normed_convolution(x, sums, *parts, norm.eps)).to(self.dtype)
        else:
            dense = self._dense(conv, gelu=norm is None)
            normalise = norm and self._norm(norm)

            def layer(x: Tensor, lengths: list[int], sums: Sums | None) -> Tensor:
                x = dense(x.to(self.dtype))
                return F.gelu(normalise(x)) if normalise else x

        return layer, conv.kernel_size[0], conv.stride[0]

    def _position(self, conv: nn.Conv1d) -> Dense:
        """The grouped convolution that tells the blocks where they are."""
        narrow = self.dtype == torch.bfloat16 and conv.in_channels // conv.groups < 16
        product = self.device.type == "cuda" or narrow and has_amx()
        make = self._position_product if product else self._position_image
        convolve = make(self._tensor(conv.weight), self._tensor(conv.bias), conv.groups)
        return lambda x: F.gelu(convolve(x))

    def _position_image(self, weight: Tensor, bias: Tensor, groups: int) -> Dense:
        """As a 2-d convolution, over images of one row."""
        kernel = weight.shape[2]
        weight = weight[:, :, None]
        weight = weight.contiguous(memory_format=torch.channels_last)  # as time-major as x

        def convolve(x: Tensor) -> Tensor:
            image = x.transpose(1, 2)[:, :, None]  # (batch, width, 1, frames)
            y = F.conv2d(image, weight, bias, padding=(0, kernel // 2), groups=groups)
            return y[:, :, 0, : x.shape[1]].transpose(1, 2)

        return convolve

    def _position_product(self, weight: Tensor, bias: Tensor, groups: int) -> Dense:
        """As matrix products, one a group: a row of windows gives `AT_ONCE` frames.

        Groups are so narrow (48 channels) that a GPU's convolutions take five times as long, in
        fp32 unless they may round their input to 10 bits.
        """
        outputs, inputs, kernel = weight.shape
        table = weight.new_zeros(groups, AT_ONCE, kernel + AT_ONCE - 1, inputs, outputs // groups)
        taps = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)  # (groups, kernel, in, out)
        for frame in range(AT_ONCE):
            table[:, frame, frame : frame + kernel] = taps
        # (groups, window · in, frames · out)
        table = table.permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)
        step, window = AT_ONCE * inputs, (kernel + AT_ONCE - 1) * inputs

        def convolve(x: Tensor) -> Tensor:
            batch, frames, _ = x.shape
            rows = -(-frames // AT_ONCE)
            behind = rows * AT_ONCE - frames + kernel - kernel // 2 - 1
            padded = F.pad(x, (0, 0, kernel // 2, behind)).unflatten(2, (groups, inputs))
            padded = padded.permute(2, 0, 1, 3).contiguous()  # (groups, batch, time, in)
            first, second, *_ = padded.stride()
            seen = padded.as_strided((groups, batch, rows, window), (first, second, step, 1))
            y = torch.bmm(seen.flatten(1, 2), table)  # (groups, batch · rows, frames · out)
            y = y.unflatten(1, (batch, rows)).unflatten(3, (AT_ONCE, -1)).flatten(2, 3)
            return y[:, :, :frames].permute(1, 2, 0, 3).flatten(2) + bias

        return convolve

    def _block(self, module: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
        attention, forward = module.attention, module.feed_forward
        three = attention.q_proj, attention.k_proj, attention.v_proj
        weight, bias = torch.cat([p.weight for p in three]), torch.cat([p.bias for p in three])
        queries_keys_values = self._dense(SimpleNamespace(weight=weight, bias=bias))
        output = self._dense(attention.out_proj)
        widen = self._dense(forward.intermediate_dense, gelu=True)
        narrow = self._dense(forward.output_dense)
        first, second = self._norm(module.layer_norm), self._norm(module.final_layer_norm)

        def attend(x: Tensor, mask: Tensor | None) -> Tensor:
            joined = queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
            q, k, v = joined.permute(2, 0, 3, 1, 4)  # each (batch, heads, frames, width)
            return output(attention_of(q, k, v, mask).transpose(1, 2).flatten(2))

        def block(x: Tensor, mask: Tensor | None) -> Tensor:
            if self.pre_norm:
                x = x + attend(first(x), mask)
                return x + narrow(widen(second(x)))
            x = first(x + attend(x, mask))
            return second(x + narrow(widen(x)))

        return block


def check_layer(layer: int, depth: int) -> None:
    """Refuses a layer that an encoder of `depth` layers does not have."""
    if not 1 <= layer <= depth:
        raise UserError(f"the encoder has layers 1 to {depth}, layer {layer} was asked for")


def check_kind(config: transformers.HubertConfig) -> None:
    """Refuses an encoder with parts that are not computed here."""
    for name, wanted in KIND.items():
        if (found := getattr(config, name, wanted)) != wanted:
            raise UserError(f"the encoder has {name} = {found!r}: only {wanted!r} is computed here")


def framing(config: transformers.HubertConfig) -> tuple[int, int]:
    """Samples from one frame of an encoder to the next, and those that a frame needs."""
    hop, window = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        window += (kernel - 1) * hop
        hop *= stride
    return hop, window


def check_length(samples: int, least: int = MINIMUM_SAMPLES) -> None:
    """Refuses audio that is too short for one frame."""
    if samples < least:
        length = f"{1000 * least / SAMPLE_RATE:g} ms"
        raise UserError(f"{samples} samples are too short: at least {least} ({length})")


def check_choice(what: str, found: str, allowed: Iterable[str]) -> None:
    """Refuses a word that is not among those allowed."""
    if found not in allowed:
        raise UserError(f"unknown {what} {found!r}: expected one of {', '.join(allowed)}")


def attention_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q·k / √width)·v over (batch, heads, frames, width); `mask` says where to look.

    Written out it uses a CPU's bf16 instructions, which torch's doesn't: up to 40 s, for memory.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] > 2000:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(batch, time, channels), contiguous → (batch, windows, kernel · channels), time first."""
    batch, time, channels = x.shape
    shape = batch, (time - kernel) // stride + 1, kernel * channels
    return x.as_strided(shape, (time * channels, stride * channels, 1)).contiguous()


def window_sums(x: Tensor, lengths: list[int]) -> Sums:
    """Of the first `lengths` windows of each row of x (batch, time, kernel), in float64:

    their number (batch,), their sum (batch, kernel), that of their outer products.
    """
    rows = [row[:n].double() for row, n in zip(x, lengths, strict=True)]
    counts = torch.tensor(lengths, device=x.device, dtype=torch.float64)
    total = torch.stack([row.sum(0) for row in rows])
    return counts, total, torch.stack([row.T @ row for row in rows])


def normed_convolution(
    x: Tensor, sums: Sums, weight: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """Convolution and group norm with one channel a group, in one product.

    The mean and variance over time of what a convolution w gives follow from the mean m and the
    covariance C of its windows: w·m and w·C·w.  So the norm is known before the convolution is run,
    and goes into its weights.  A bias of the convolution would cancel out.

    x: windows (batch, time, kernel) of one input channel in float32; weight (channels, kernel) →
    (batch, time, channels).
    """
    (count, total, products), wide = sums, weight.double()
    mean = total / count[:, None]
    covariance = products / count[:, None, None] - mean[:, :, None] * mean[:, None, :]
    variance = torch.einsum("ck,bkl,cl->bc", wide, covariance, wide).clamp(min=0)
    factor = scale * torch.rsqrt(variance + eps)  # (batch, channels)
    offset = shift - factor * (mean @ wide.T)
    weights = (wide * factor[..., None]).float().transpose(1, 2)  # (batch, kernel, channels)
    return torch.baddbmm(offset.float()[:, None], x, weights)
