"""Recordings of any length → features, in one of three ways.

- `exact`: norm statistics of the whole recording, then the front end in pieces, then attention
  over it all.  It equals encoding the recording at once.
- windowed, which `exact` becomes for longer ones: attention within windows of 60 s whose outer
  10 s are thrown away.  **Approximate**.
- `release`: chunks of 1,600,000 samples (100 s), each for itself.  It gives the published units
  and loses frames at the edges of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.units.features import (
    FeatureEncoder,
    Moments,
    check_choice,
    check_length,
    moments_of,
    windows,
)
from speechgpt_lib.units.hubert import frame_count

RELEASE_CHUNK = 1_600_000  # samples, in the published feature reader
PIECE = 1500  # frames of the front end at a time: 30 s
WINDOW = 3000  # frames of attention: 60 s,
MARGIN = 500  # of which 10 s on each side only give context
MODES = ("exact", "release")


@dataclass(frozen=True)
class LongFeatures:
    """`features` (frames, width) float32, and the samples `dropped` at the end of the recording."""

    features: Tensor
    dropped: int = 0
    approximate: bool = False


@torch.inference_mode()
def encode_long(
    encoder: FeatureEncoder, wave: np.ndarray, mode: str = "exact", attention_limit_s: float = 300.0
) -> LongFeatures:
    """Features of float32 samples (n,) at 16 kHz; beyond `attention_limit_s` `exact` is windowed.

    Memory for the scores of attention is bounded by the limit; the front end needs that of 30 s.
    """
    check_choice("way to treat long audio", mode, MODES)
    if mode == "release":
        return _encode_release(encoder, wave)
    check_length(len(wave))
    samples = encoder.samples(wave)
    moments = _whole_moments(encoder, samples)
    pieces = _pieces(encoder, samples)
    parts = [encoder.front_end(piece, [piece.shape[1]], moments)[0] for piece in pieces]
    hidden = torch.cat(parts, dim=1)  # (1, frames, width)
    if len(samples) <= attention_limit_s * SAMPLE_RATE:
        return LongFeatures(encoder.transform(hidden, [hidden.shape[1]])[0].float())
    return LongFeatures(torch.cat(list(_windowed(encoder, hidden))), approximate=True)


def _encode_release(encoder: FeatureEncoder, wave: np.ndarray) -> LongFeatures:
    """Chunks as the published reader cuts them; a last one too short for a frame is dropped."""
    starts = range(0, max(len(wave), 1), RELEASE_CHUNK)
    chunks = [wave[start : start + RELEASE_CHUNK] for start in starts]
    dropped = len(chunks.pop()) if len(chunks) > 1 and len(chunks[-1]) < MINIMUM_SAMPLES else 0
    return LongFeatures(torch.cat([encoder([chunk])[0] for chunk in chunks]), dropped)


def _pieces(encoder: FeatureEncoder, samples: Tensor) -> Iterator[Tensor]:
    """(1, samples) pieces, overlapping by what a frame needs: their frames are the whole's."""
    for first in range(0, frame_count(len(samples)), PIECE):
        start = first * HOP
        yield samples[start : start + (PIECE - 1) * HOP + MINIMUM_SAMPLES].to(encoder.device)[None]


def _whole_moments(encoder: FeatureEncoder, samples: Tensor) -> Moments:
    """What `window_moments` gives for the whole recording, summed over pieces."""
    _, kernel, stride = encoder.convolutions[0]
    count, total, products, step = 0, 0.0, 0.0, PIECE * HOP // stride
    for first in range(0, (len(samples) - kernel) // stride + 1, step):
        piece = samples[first * stride : (first + step - 1) * stride + kernel].to(encoder.device)
        views = windows(piece[None, :, None], kernel, stride)[0].double()  # (windows, kernel)
        count += len(views)
        total = total + views.sum(0)
        products = products + views.T @ views
    return moments_of(total.new_tensor([count]), total[None], products[None])


def _windowed(encoder: FeatureEncoder, hidden: Tensor) -> Iterator[Tensor]:
    """hidden (1, frames, width) in overlapping windows; yields each window's own frames."""
    frames = hidden.shape[1]
    for first in range(0, frames, WINDOW - 2 * MARGIN):
        start, end = max(0, first - MARGIN), min(frames, first + WINDOW - MARGIN)
        own = slice(first - start, min(frames, first + WINDOW - 2 * MARGIN) - start)
        yield encoder.transform(hidden[:, start:end], [end - start])[0, own].float()
