"""Merged units → how many frames each lasts: the duration predictor, and the wanted speed.

Published are two convolutions over unit embeddings, each with ReLU, layer norm and dropout, then
one number a unit (FastSpeech 2: Ren et al. 2021, arXiv 2006.04558, section 2.3): log(d + 1), as
fairseq's.  Further convolutions see further: a word's sounds depend on the whole word.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import DurationSettings

PUBLISHED = DurationSettings()


class DurationPredictor(nn.Module):
    """units (batch, n) → log(d + 1) (batch, n), d in frames; or, with `settings.longest`, logits of
    1, 2 … `longest` frames (batch, n, longest).

    Layers are named as in fairseq's `dur_predictor`, plus `dict`: an embedding of its own, so that
    it trains beside the generator.  `embedding` and `width`, of convolutions: 128 as published.
    Convolutions after the second have shortcuts around them, and each reaches twice as far.
    """

    def __init__(
        self, unit_count: int, embedding: int = 128, width: int | None = None, settings=PUBLISHED
    ):
        super().__init__()
        width = width or embedding
        self.dict = nn.Embedding(unit_count, embedding)
        self.layers, inputs = [], embedding  # the names of convolutions and norms
        dilations = [1, *(2**n for n in range(settings.convolutions - 1))]
        for number, dilation in enumerate(dilations, 1):
            self.layers.append((f"conv{number}", f"ln{number}"))
            conv = nn.Conv1d(inputs, width, 3, padding=dilation, dilation=dilation)
            self.add_module(f"conv{number}", nn.Sequential(conv, nn.ReLU()))
            self.add_module(f"ln{number}", nn.LayerNorm(width))
            inputs = width
        self.reach = sum(dilations)  # units before and after, on which a duration depends
        self.dropout = nn.Dropout(settings.dropout)
        self.longest = settings.longest
        self.proj = nn.Linear(width, self.longest or 1)

    def forward(self, units: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (batch, n) is true where a unit is: padding behind a short row changes nothing."""
        keep = 1.0 if mask is None else mask[..., None].to(self.proj.weight.dtype)
        x = self.dict(units) * keep  # (batch, n, width)
        for number, (conv, norm) in enumerate(self.layers):
            made = self.get_submodule(conv)(x.transpose(1, 2)).transpose(1, 2)
            made = self.dropout(self.get_submodule(norm)(made)) * keep
            x = made if number < 2 else x + made
        return self.proj(x) if self.longest else self.proj(x)[..., 0]

    def loss(self, predicted: Tensor, frames: Tensor) -> Tensor:
        """Of what `forward` gives for units (n,) that last `frames` (n,): the sum over units.

        Squared error of log(d + 1), or cross-entropy.
        """
        if self.longest:
            return cross_entropy(predicted, frames.clamp(1, self.longest) - 1, reduction="sum")
        return mse_loss(predicted, torch.log1p(frames.float()), reduction="sum")

    def expected(self, predicted: Tensor) -> Tensor:
        """What `forward` gives → whole frames (…) int64, at least 1.

        round(exp(log d) − 1); or the median, which rare long units don't pull up or down.
        """
        if self.longest:
            below = predicted.softmax(-1).cumsum(-1) < 0.5
            return below.sum(-1).clamp(max=self.longest - 1) + 1
        return torch.round(torch.exp(predicted) - 1).clamp(min=1).long()

    @torch.inference_mode()
    def predict(self, units: Tensor) -> Tensor:
        """units (batch, n) → frames (batch, n) int64."""
        return self.expected(self(units))


def scale_durations(durations: np.ndarray, speed: float) -> np.ndarray:
    """Durations (n,) in frames for speech `speed` times as fast.

    The borders between units are scaled and rounded: the whole becomes as long as asked to within
    half a frame (at least 1), a short unit may get none.  Raises UserError outside 0.25 … 4.
    """
    borders = scaled_borders(np.cumsum(durations), speed)
    borders[-1] = max(1, borders[-1])
    return np.diff(borders, prepend=0)


def scaled_borders(borders: np.ndarray | int, speed: float) -> np.ndarray:
    """Where units end, in frames from the start (n,), in speech `speed` times as fast."""
    if not 0.25 <= speed <= 4:
        raise UserError(f"speed is {speed:g}, expected 0.25 (slow) to 4 (fast)")
    return np.floor(borders / speed + 0.5).astype(np.int64)
