"""Units come one by one, sound goes out as soon as nothing that is still to come can change it.

Every layer of the generator keeps the few values that its next outputs need, and nothing else: nothing is computed twice, memory doesn't
grow, and what comes out is, piece by piece, what the generator makes of the whole.  Two things delay it:

- the duration of a unit depends on the two units after it;
- a sample depends on `lookahead(generator)` samples' worth of frames after it (published geometry: 6418 samples, 0.40 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.nn.functional import conv_transpose2d, leaky_relu

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP
from speechgpt_lib.vocoder.durations import DurationPredictor, scaled_borders
from speechgpt_lib.vocoder.generator import SLOPE, Conv, ResidualBlock, UnitGenerator, Upsample


class ConvStream:
    """A convolution whose output is as long as its input: withholds as many values as it looks ahead."""

    def __init__(self, conv: Conv):
        self.conv, self.reach, self.kept = conv, conv.padding[0], None

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        before = silence(x, self.reach) if self.kept is None else self.kept
        x = torch.cat([before, x, *([silence(x, self.reach)] if last else [])], dim=3)
        self.kept = x[..., max(0, x.shape[3] - 2 * self.reach) :]
        if x.shape[3] <= 2 * self.reach:
            return x.new_zeros(x.shape[0], self.conv.out_channels, 1, 0)
        return self.conv(x, padding=0)


class UpStream:
    """A transposed convolution: each input adds to `kernel` outputs, of which the last `kernel − rate` await the next inputs."""

    def __init__(self, up: Upsample):
        self.up, self.rate, self.overlap = up, up.stride[0], up.kernel_size[0] - up.stride[0]
        self.trim = self.to_skip = up.padding[0]  # so much falls away at each end of the whole
        self.kept: torch.Tensor | float = 0.0

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        count = x.shape[3] * self.rate
        if count:
            sums = conv_transpose2d(x, self.up.weight[:, :, None], stride=(1, self.rate))
        else:
            sums = x.new_zeros(x.shape[0], self.up.out_channels, 1, self.overlap)
        sums[..., : self.overlap] += self.kept
        self.kept = sums[..., count:].clone()
        done = sums[..., : sums.shape[3] - self.trim] if last else sums[..., :count]
        skipped = min(self.to_skip, done.shape[3])
        self.to_skip -= skipped
        return done[..., skipped:] + self.up.bias[:, None, None]


class BlockStream:
    """A residual block: the shortcut around each pair of convolutions waits for what the pair makes."""

    def __init__(self, block: ResidualBlock):
        pairs = zip(block.convs1, block.convs2, strict=True)
        self.pairs = [(ConvStream(dilated), ConvStream(plain), Queue()) for dilated, plain in pairs]

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        for dilated, plain, shortcut in self.pairs:
            shortcut.put(x)
            made = plain(leaky_relu(dilated(leaky_relu(x, SLOPE), last), SLOPE), last)
            x = shortcut.take(made.shape[3]) + made
        return x


class Queue:
    """Values along time, put in at one end and taken out at the other."""

    def __init__(self) -> None:
        self.kept: torch.Tensor | None = None

    def put(self, x: torch.Tensor) -> None:
        self.kept = x if self.kept is None else torch.cat([self.kept, x], dim=3)

    def take(self, count: int) -> torch.Tensor:
        taken, self.kept = self.kept[..., :count], self.kept[..., count:]
        return taken


class StageStream:
    """One stage: upsampling, then residual blocks side by side, whose mean goes on as far as the slowest has come."""

    def __init__(self, up: Upsample, blocks: list[ResidualBlock]):
        self.up, self.blocks = UpStream(up), [(BlockStream(block), Queue()) for block in blocks]

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        x = self.up(leaky_relu(x, SLOPE), last)
        for block, queue in self.blocks:
            queue.put(block(x, last))
        count = min(queue.kept.shape[3] for _, queue in self.blocks)
        return sum(queue.take(count) for _, queue in self.blocks) / len(self.blocks)


class GeneratorStream:
    """A generator with its weight norm folded, fed frames in pieces of any size."""

    def __init__(self, generator: UnitGenerator, speaker: int | None = None):
        self.generator = generator
        self.speakers = (
            None
            if speaker is None
            else torch.tensor([speaker], device=generator.dict.weight.device)
        )
        self.before, self.after = ConvStream(generator.conv_pre), ConvStream(generator.conv_post)
        self.stages = [StageStream(up, blocks) for up, blocks in generator.stages()]

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, last: bool = False) -> np.ndarray:
        """Unit ids, one a frame → the samples (float32) that are final now; with `last` all that are left."""
        units = torch.from_numpy(np.asarray(frames, dtype=np.int64)).to(
            self.generator.dict.weight.device
        )
        x = self.before(self.generator.embed(units[None], self.speakers), last)
        for stage in self.stages:
            x = stage(x, last)
        return torch.tanh(self.after(leaky_relu(x), last)).flatten().float().cpu().numpy()


def silence(x: torch.Tensor, count: int) -> torch.Tensor:
    """(batch, channels, 1, count) zeros, laid out with channels last, as the embedding is."""
    return x.new_zeros(x.shape[0], 1, count, x.shape[1]).permute(0, 3, 1, 2)


def lookahead(generator: UnitGenerator) -> int:
    """Samples that a stream withholds until more frames or the end come: the sum of what its layers look ahead."""
    hop = HOP
    samples = generator.conv_pre.padding[0] * hop
    for up, blocks in generator.stages():
        hop //= up.stride[0]
        samples += up.padding[0] * hop
        samples += hop * max(
            sum(conv.padding[0] for conv in [*block.convs1, *block.convs2]) for block in blocks
        )
    return samples + generator.conv_post.padding[0] * hop


class SpeechStream:
    """Merged units in, as they come; sound out.  Made by `Vocoder.stream`."""

    def __init__(
        self,
        generator: GeneratorStream,
        durations: DurationPredictor,
        check: Callable,
        speed: float,
        piece: int,
    ):
        self._generator, self._durations, self._check, self._speed, self._piece = (
            generator,
            durations,
            check,
            speed,
            piece,
        )
        self._units = np.zeros(
            0, np.int64
        )  # up to `reach` units that are timed already, then those that are not
        self._timed = 0
        self._frames = np.zeros(0, np.int64)  # not yet given to the generator
        self._passed, self._border = 0, 0  # frames so far, as predicted and at the wanted speed
        self._ended = False

    def push(self, units: np.ndarray | list[int] | int) -> np.ndarray:
        """Take the next unit or units; returns the samples (float32, 16 kHz) that are final now, often none.

        Raises UserError for ids out of range, and after `finish`.
        """
        if self._ended:
            raise UserError("this stream of speech has been finished: start a new one")
        self._units = (
            np.concatenate([self._units, self._check(np.atleast_1d(units))])
            if np.size(units)
            else self._units
        )
        self._time(len(self._units) - self._durations.reach)
        whole = len(self._frames) // self._piece * self._piece
        return self._speak(whole, last=False) if whole else np.zeros(0, np.float32)

    def finish(self) -> np.ndarray:
        """No unit follows: returns the rest of the sound, none where there was no unit at all."""
        self._time(len(self._units))
        if self._passed and not self._border:  # however fast, something is heard
            self._frames, self._border = self._units[-1:], 1
        was_ended, self._ended = self._ended, True
        return (
            np.zeros(0, np.float32)
            if was_ended or not self._border
            else self._speak(len(self._frames), last=True)
        )

    def run(self, units: Iterable[int]) -> Iterator[np.ndarray]:
        """A stream of units → a stream of pieces of sound, none of them empty."""
        for unit in units:
            if len(wave := self.push(unit)):
                yield wave
        if len(wave := self.finish()):
            yield wave

    def _time(self, stop: int) -> None:
        """Turn the units before `stop` into frames: `scale_durations` unit by unit."""
        if stop <= self._timed:
            return
        durations = (
            self._durations.predict(torch.from_numpy(self._units)[None])[0]
            .cpu()
            .numpy()[self._timed : stop]
        )
        passed = self._passed + np.cumsum(durations)
        borders = scaled_borders(passed, self._speed)
        lengths = np.diff(borders, prepend=self._border)
        self._frames = np.concatenate(
            [self._frames, np.repeat(self._units[self._timed : stop], lengths)]
        )
        self._passed, self._border = int(passed[-1]), int(borders[-1])
        forgotten = max(0, stop - self._durations.reach)
        self._units, self._timed = self._units[forgotten:], stop - forgotten

    def _speak(self, count: int, last: bool) -> np.ndarray:
        frames, self._frames = self._frames[:count], self._frames[count:]
        return self._generator(frames, last)
