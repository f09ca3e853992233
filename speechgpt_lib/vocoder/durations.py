"""Merged units → how many frames each lasts: the duration predictor, and the wanted speed.

Two convolutions over unit embeddings, each with ReLU, layer norm and dropout, then one number a
unit (FastSpeech 2: Ren et al. 2021, arXiv 2006.04558, section 2.3): log(d + 1), as fairseq's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt_lib.errors import UserError


class DurationPredictor(nn.Module):
    """units (batch, n) → log(d + 1) (batch, n), d in frames.

    Layers are named as in fairseq's `dur_predictor`, plus `dict`: an embedding of its own, so that
    it trains beside the generator.  `embedding` and `width`, of convolutions: 128 as published.
    """

    reach = 2  # units before and after, on which a duration depends

    def __init__(self, unit_count: int, embedding: int = 128, width: int | None = None):
        super().__init__()
        width = width or embedding
        self.dict = nn.Embedding(unit_count, embedding)
        self.conv1 = nn.Sequential(nn.Conv1d(embedding, width, 3, padding=1), nn.ReLU())
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)
        self.proj = nn.Linear(width, 1)

    def forward(self, units: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (batch, n) is true where a unit is: padding behind a short row changes nothing."""
        keep = 1.0 if mask is None else mask[..., None].to(self.proj.weight.dtype)
        x = self.dict(units) * keep  # (batch, n, width)
        for conv, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = self.dropout(norm(conv(x.transpose(1, 2)).transpose(1, 2))) * keep
        return self.proj(x)[..., 0]

    @torch.inference_mode()
    def predict(self, units: Tensor) -> Tensor:
        """units (batch, n) → frames (batch, n) int64: clamp(round(exp(log d) − 1), 1)."""
        return torch.round(torch.exp(self(units)) - 1).clamp(min=1).long()


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
