"""Units come one by one, sound goes out as soon as nothing that is still to come can change it.

Every layer of the generator keeps the few values that its next outputs need: nothing is computed
twice, memory doesn't grow, all pieces together are the whole.  The duration of a unit depends on
`reach` units after it (published: two), a sample on `lookahead` samples' worth of frames
(published: 6418, 0.40 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt_lib.errors import UserError
from speechgpt_lib.vocoder.durations import DurationPredictor, scaled_borders
from speechgpt_lib.vocoder.generator import Conv, InverseSTFT, Rows, UnitGenerator, Upsample


class GeneratorStream(Rows):
    """A generator with its weight norm folded, fed frames in pieces of any size.

    It applies the generator's layers: each gets new inputs (1, channels, 1, time) and gives the
    outputs that are final now; at the `last` call all that are left.
    """

    def __init__(self, generator: UnitGenerator, speaker: int | None = None):
        super().__init__()
        self.generator, self.device, self.last = generator, generator.dict.weight.device, False
        self.speakers = None if speaker is None else torch.tensor([speaker], device=self.device)
        self.kept: dict[nn.Module, Tensor] = {}  # of each layer, for its next outputs
        self.skipped = dict.fromkeys(
            [*generator.ups, generator.istft], 0
        )  # first outputs that each has left out
        self.waiting: dict[nn.Module, list[Tensor]] = {}  # what came before its counterpart

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray | list[int], last: bool = False) -> np.ndarray:
        """Unit ids, one a frame → the samples (float32) that are final now; the rest at `last`."""
        units = torch.as_tensor(np.asarray(frames, dtype=np.int64), device=self.device)
        self.last = last
        return self.generator(units[None], self.speakers, self).flatten().float().cpu().numpy()

    def conv(self, layer: Conv, x: Tensor) -> Tensor:
        """A convolution of unchanged length: it withholds as many values as it looks ahead."""
        reach = layer.padding[0]
        silence = x.new_zeros(1, 1, reach, x.shape[1]).permute(0, 3, 1, 2)  # channels last
        x = torch.cat([self.kept.get(layer, silence), x, *[silence] * self.last], dim=3)
        self.kept[layer] = x[..., max(0, x.shape[3] - 2 * reach) :]
        if x.shape[3] <= 2 * reach:
            return x.new_zeros(1, layer.out_channels, 1, 0)
        return layer(x, padding=0)

    def up(self, layer: Upsample | InverseSTFT, x: Tensor) -> Tensor:
        """Its last outputs await what the next inputs add to them."""
        rate, trim = layer.stride[0], layer.padding[0]  # `trim` falls away at each end of the whole
        overlap, count = layer.kernel_size[0] - rate, x.shape[3] * rate
        none = x.new_zeros(1, layer.out_channels, 1, overlap)
        sums = layer.spread(x) if count else none
        sums[..., :overlap] += self.kept.get(layer, 0.0)
        self.kept[layer] = sums[..., count:].clone()
        done = sums[..., : sums.shape[3] - trim if self.last else count]
        skipped = min(trim - self.skipped[layer], done.shape[3])
        self.skipped[layer] += skipped
        done = done[..., skipped:]
        return done if layer.bias is None else done + layer.bias[:, None, None]

    def meet(self, place: nn.Module, *parts: Tensor) -> list[Tensor]:
        """Results that are to be added, as far as all of them have come; the rest waits."""
        if place in self.waiting:
            pairs = zip(self.waiting[place], parts, strict=True)
            parts = [torch.cat(pair, dim=3) if pair[0].numel() else pair[1] for pair in pairs]
        count = min(part.shape[3] for part in parts)
        self.waiting[place] = [part[..., count:] for part in parts]
        return [part[..., :count] for part in parts]


def lookahead(generator: UnitGenerator) -> int:
    """Samples that a stream withholds until more frames or the end come: its layers' reaches."""
    before = [generator.conv_pre, *(block.depthwise for block in generator.frames)]
    hop, samples = generator.hop, generator.hop * sum(conv.padding[0] for conv in before)
    for up, blocks in generator.stages():
        hop //= up.stride[0]
        reach = max(sum(c.padding[0] for c in [*b.convs1, *b.convs2]) for b in blocks)
        samples += (up.padding[0] + reach) * hop
    last = generator.istft or generator.conv_post  # a 1 × 1 convolution before the former
    return samples + last.padding[0] * (1 if generator.istft else hop)


@dataclass
class SpeechStream:
    """Merged units in, as they come; sound out.  Made by `Vocoder.stream`."""

    generator: GeneratorStream
    durations: DurationPredictor
    check: Callable[[np.ndarray], np.ndarray]  # raises UserError for ids out of range
    speed: float
    piece: int  # frames that are spoken at a time
    units: list[int] = field(default_factory=list)  # up to `reach` timed ones, then those that wait
    timed: int = 0  # how many of `units` have their frames
    frames: list[int] = field(default_factory=list)  # not yet given to the generator
    predicted: int = 0  # frames so far, before they are scaled to the wanted speed
    ended: bool = False

    def push(self, units: np.ndarray | list[int] | int) -> np.ndarray:
        """Take the next unit or units; returns the samples (float32, 16 kHz) that are final now.

        Raises UserError for ids out of range, and after `finish`.
        """
        if self.ended:
            raise UserError("this stream of speech has been finished: start a new one")
        if np.size(units):
            self.units += self.check(np.atleast_1d(units)).tolist()
        return self._speak(len(self.units) - self.durations.reach)

    def finish(self) -> np.ndarray:
        """No unit follows: returns the rest of the sound, none where there was no unit at all."""
        last, self.ended = not self.ended, True
        return self._speak(len(self.units), last)

    def run(self, units: Iterable[int]) -> Iterator[np.ndarray]:
        """A stream of units → a stream of pieces of sound, none of them empty."""
        yield from filter(len, map(self.push, units))
        if len(wave := self.finish()):
            yield wave

    def _speak(self, stop: int, last: bool = False) -> np.ndarray:
        """Time the units before `stop` as `scale_durations` does; speak what makes whole pieces."""
        if stop > self.timed:
            units = torch.tensor([self.units], device=self.generator.device)
            durations = self.durations.predict(units)[0, self.timed : stop].tolist()
            ends = np.cumsum([self.predicted, *durations])
            lengths = np.diff(scaled_borders(ends, self.speed))
            self.frames += np.repeat(self.units[self.timed : stop], lengths).tolist()
            forgotten, self.predicted = max(0, stop - self.durations.reach), int(ends[-1])
            self.units, self.timed = self.units[forgotten:], stop - forgotten
        last = last and self.predicted > 0
        if last and not scaled_borders(self.predicted, self.speed):
            self.frames = self.units[-1:]  # however fast, something is heard
        count = len(self.frames) if last else len(self.frames) // self.piece * self.piece
        if not count and not last:
            return np.zeros(0, np.float32)
        frames, self.frames = self.frames[:count], self.frames[count:]
        return self.generator(frames, last)
