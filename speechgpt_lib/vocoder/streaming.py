"""Units come one by one, sound goes out as soon as nothing that is still to come can change it.

Every layer of the generator keeps the few values that its next outputs need, and nothing else:
nothing is computed twice, memory doesn't grow, and the pieces together are what the generator makes
of the whole.  Two things delay the sound:

- the duration of a unit depends on the two units after it;
- a sample depends on `lookahead(generator)` samples' worth of frames after it (published geometry:
  6418 samples, 0.40 s).

Each stream is called with new inputs (batch, channels, 1, time) and returns the outputs that are
final now; with `last` all that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, leaky_relu

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP
from speechgpt_lib.vocoder.durations import DurationPredictor, scaled_borders
from speechgpt_lib.vocoder.generator import SLOPE, Conv, ResidualBlock, UnitGenerator, Upsample


class ConvStream:
    """A convolution of unchanged length: it withholds as many values as it looks ahead."""

    def __init__(self, conv: Conv):
        self.conv, self.reach, self.kept = conv, conv.padding[0], None

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        before = silence(x, self.reach) if self.kept is None else self.kept
        after = [silence(x, self.reach)] if last else []
        x = torch.cat([before, x, *after], dim=3)
        self.kept = x[..., max(0, x.shape[3] - 2 * self.reach) :]
        if x.shape[3] <= 2 * self.reach:
            return x.new_zeros(x.shape[0], self.conv.out_channels, 1, 0)
        return self.conv(x, padding=0)


class UpStream:
    """A transposed convolution: its last `kernel − rate` outputs await what the next inputs add."""

    def __init__(self, up: Upsample):
        self.up, self.rate, self.overlap = up, up.stride[0], up.kernel_size[0] - up.stride[0]
        self.trim = self.to_skip = up.padding[0]  # so much falls away at each end of the whole
        self.kept: Tensor | float = 0.0

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        count = x.shape[3] * self.rate
        if count:
            sums = conv_transpose2d(x, self.up.weight[:, :, None], stride=(1, self.rate))
        else:
            sums = x.new_zeros(x.shape[0], self.up.out_channels, 1, self.overlap)
        sums[..., : self.overlap] += self.kept
        self.kept = sums[..., count:].clone()
        done = sums[..., : sums.shape[3] - self.trim if last else count]
        skipped = min(self.to_skip, done.shape[3])
        self.to_skip -= skipped
        return done[..., skipped:] + self.up.bias[:, None, None]


class BlockStream:
    """A residual block: the shortcut around each pair of convolutions waits for what they make."""

    def __init__(self, block: ResidualBlock):
        pairs = zip(block.convs1, block.convs2, strict=True)
        self.pairs = [(ConvStream(dilated), ConvStream(plain), Queue()) for dilated, plain in pairs]

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        for dilated, plain, shortcut in self.pairs:
            shortcut.put(x)
            made = plain(leaky_relu(dilated(leaky_relu(x, SLOPE), last), SLOPE), last)
            x = shortcut.take(made.shape[3]) + made
        return x


class Queue:
    """Values along time, put in at one end and taken out at the other."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def put(self, x: Tensor) -> None:
        """Append values."""
        self.kept = x if self.kept is None else torch.cat([self.kept, x], dim=3)

    def take(self, count: int) -> Tensor:
        """Remove the `count` oldest values."""
        taken, self.kept = self.kept[..., :count], self.kept[..., count:]
        return taken


class StageStream:
    """Upsampling, then the mean of residual blocks side by side, as far as the slowest has come."""

    def __init__(self, up: Upsample, blocks: list[ResidualBlock]):
        self.up, self.blocks = UpStream(up), [(BlockStream(block), Queue()) for block in blocks]

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        x = self.up(leaky_relu(x, SLOPE), last)
        for block, queue in self.blocks:
            queue.put(block(x, last))
        count = min(queue.kept.shape[3] for _, queue in self.blocks)
        return sum(queue.take(count) for _, queue in self.blocks) / len(self.blocks)


class GeneratorStream:
    """A generator with its weight norm folded, fed frames in pieces of any size."""

    def __init__(self, generator: UnitGenerator, speaker: int | None = None):
        self.generator, self.device = generator, generator.dict.weight.device
        self.speakers = None if speaker is None else torch.tensor([speaker], device=self.device)
        self.before, self.after = ConvStream(generator.conv_pre), ConvStream(generator.conv_post)
        self.stages = [StageStream(up, blocks) for up, blocks in generator.stages()]

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray | list[int], last: bool = False) -> np.ndarray:
        """Unit ids, one a frame → the samples (float32) that are final now; the rest at `last`."""
        units = torch.as_tensor(np.asarray(frames, dtype=np.int64), device=self.device)
        x = self.before(self.generator.embed(units[None], self.speakers), last)
        for stage in self.stages:
            x = stage(x, last)
        return torch.tanh(self.after(leaky_relu(x), last)).flatten().float().cpu().numpy()


def silence(x: Tensor, count: int) -> Tensor:
    """(batch, channels, 1, count) zeros, laid out with channels last, as the embedding is."""
    return x.new_zeros(x.shape[0], 1, count, x.shape[1]).permute(0, 3, 1, 2)


def lookahead(generator: UnitGenerator) -> int:
    """Samples that a stream withholds until more frames or the end come: its layers' reaches."""
    hop = HOP
    samples = generator.conv_pre.padding[0] * hop
    for up, blocks in generator.stages():
        hop //= up.stride[0]
        reach = max(sum(c.padding[0] for c in [*b.convs1, *b.convs2]) for b in blocks)
        samples += (up.padding[0] + reach) * hop
    return samples + generator.conv_post.padding[0] * hop


@dataclass
class SpeechStream:
    """Merged units in, as they come; sound out.  Made by `Vocoder.stream`.

    check: raises UserError for ids out of range.  piece: frames that are spoken at a time.
    """

    generator: GeneratorStream
    durations: DurationPredictor
    check: Callable[[np.ndarray], np.ndarray]
    speed: float
    piece: int
    units: list[int] = field(default_factory=list)  # up to `reach` timed ones, then those that wait
    timed: int = 0  # how many of `units` have their frames
    frames: list[int] = field(default_factory=list)  # not yet given to the generator
    predicted: int = 0  # frames so far, as predicted
    border: int = 0  # frames so far, at the wanted speed
    ended: bool = False

    def push(self, units: np.ndarray | list[int] | int) -> np.ndarray:
        """Take the next unit or units; returns the samples (float32, 16 kHz) that are final now.

        Often there are none.  Raises UserError for ids out of range, and after `finish`.
        """
        if self.ended:
            raise UserError("this stream of speech has been finished: start a new one")
        if np.size(units):
            self.units += self.check(np.atleast_1d(units)).tolist()
        self._time(len(self.units) - self.durations.reach)
        return self._speak(len(self.frames) // self.piece * self.piece, last=False)

    def finish(self) -> np.ndarray:
        """No unit follows: returns the rest of the sound, none where there was no unit at all."""
        self._time(len(self.units))
        if self.predicted and not self.border:  # however fast, something is heard
            self.frames, self.border = self.units[-1:], 1
        last, self.ended = self.border > 0 and not self.ended, True
        return self._speak(len(self.frames), last)

    def run(self, units: Iterable[int]) -> Iterator[np.ndarray]:
        """A stream of units → a stream of pieces of sound, none of them empty."""
        for unit in units:
            if len(wave := self.push(unit)):
                yield wave
        if len(wave := self.finish()):
            yield wave

    def _time(self, stop: int) -> None:
        """Turn the units before `stop` into frames: `scale_durations` unit by unit."""
        if stop <= self.timed:
            return
        units = torch.tensor([self.units], device=self.generator.device)
        durations = self.durations.predict(units)[0, self.timed : stop].cpu().numpy()
        ends = self.predicted + np.cumsum(durations)
        borders = scaled_borders(ends, self.speed)
        lengths = np.diff(borders, prepend=self.border)
        self.frames += np.repeat(self.units[self.timed : stop], lengths).tolist()
        self.predicted, self.border = int(ends[-1]), int(borders[-1])
        forgotten = max(0, stop - self.durations.reach)
        self.units, self.timed = self.units[forgotten:], stop - forgotten

    def _speak(self, count: int, last: bool) -> np.ndarray:
        if not count and not last:
            return np.zeros(0, np.float32)
        frames, self.frames = self.frames[:count], self.frames[count:]
        return self.generator(frames, last)
