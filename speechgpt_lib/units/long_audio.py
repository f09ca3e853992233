"""Recordings of any length → features.

| mode | what it computes | equals |
|---|---|---|
| `exact` | norm statistics of the whole recording, then the front end in pieces, then attention over it all | encoding it at once |
| `windowed` | the same, but attention within windows of 60 s whose outer 10 s are thrown away | **approximate**, for longer ones |
| `release` | chunks of 1,600,000 samples (100 s), each for itself | the published units; loses frames at the edges of chunks |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.units.features import FeatureEncoder, Moments, moments_of, windows
from speechgpt_lib.units.hubert import frame_count

RELEASE_CHUNK = 1_600_000  # samples, in the published feature reader
PIECE = 1500  # frames of the front end at a time: 30 s
WINDOW, MARGIN = (
    3000,
    500,
)  # frames of attention: 60 s, of which 10 s on each side only give context
MODES = ("exact", "release")


@dataclass(frozen=True)
class LongFeatures:
    """`features` (frames, width) float32; `dropped` samples at the end of the recording in no frame of their own; whether approximate."""

    features: Tensor
    dropped: int = 0
    approximate: bool = False


@torch.inference_mode()
def encode_long(
    encoder: FeatureEncoder, wave: np.ndarray, mode: str = "exact", attention_limit_s: float = 300.0
) -> LongFeatures:
    """Features of float32 samples (n,) at 16 kHz of any length; beyond `attention_limit_s` seconds `exact` becomes `windowed`.

    Memory for the scores of attention is bounded by the limit, the front end needs that of 30 s.
    """
    if mode == "release":
        return _encode_release(encoder, wave)
    if mode != "exact":
        raise UserError(
            f"unknown way {mode!r} to treat long audio: expected one of {', '.join(MODES)}"
        )
    if len(wave) < MINIMUM_SAMPLES:
        raise UserError(
            f"audio of {len(wave)} samples is too short: units need at least {MINIMUM_SAMPLES} (25 ms at 16 kHz)"
        )
    samples = encoder.samples(wave)
    moments = _whole_moments(encoder, samples)
    hidden = torch.cat(
        [
            encoder.front_end(piece, [piece.shape[1]], moments)[0]
            for piece in _pieces(encoder, samples)
        ],
        dim=1,
    )
    if len(samples) <= attention_limit_s * SAMPLE_RATE:
        return LongFeatures(encoder.transform(hidden, [hidden.shape[1]])[0].float())
    return LongFeatures(torch.cat(list(_windowed(encoder, hidden))), approximate=True)


def _encode_release(encoder: FeatureEncoder, wave: np.ndarray) -> LongFeatures:
    """Chunks as the published reader cuts them; a last fragment too short for one frame is dropped."""
    chunks = [
        wave[start : start + RELEASE_CHUNK] for start in range(0, max(len(wave), 1), RELEASE_CHUNK)
    ]
    dropped = len(chunks.pop()) if len(chunks) > 1 and len(chunks[-1]) < MINIMUM_SAMPLES else 0
    return LongFeatures(torch.cat([encoder([chunk])[0] for chunk in chunks]), dropped)


def _pieces(encoder: FeatureEncoder, samples: Tensor) -> Iterator[Tensor]:
    """(1, samples) pieces that overlap by what the next frame needs of the last: their frames, joined, are those of the whole."""
    for first in range(0, frame_count(len(samples)), PIECE):
        start = first * HOP
        yield samples[start : start + (PIECE - 1) * HOP + MINIMUM_SAMPLES].to(encoder.device)[None]


def _whole_moments(encoder: FeatureEncoder, samples: Tensor) -> Moments:
    """What `window_moments` gives for the whole recording, summed over pieces."""
    _, kernel, stride = encoder.convolutions[0]
    count, total, products, step = 0, 0.0, 0.0, PIECE * HOP // stride
    for first in range(0, (len(samples) - kernel) // stride + 1, step):
        piece = samples[first * stride : (first + step - 1) * stride + kernel].to(encoder.device)
        views = windows(piece[None, :, None], kernel, stride)[0].double()
        count, total, products = (
            count + len(views),
            total + views.sum(0),
            products + views.T @ views,
        )
    return moments_of(
        torch.tensor([count], device=encoder.device, dtype=torch.float64),
        total[None],
        products[None],
    )


def _windowed(encoder: FeatureEncoder, hidden: Tensor) -> Iterator[Tensor]:
    """hidden (1, frames, width) through the blocks in overlapping windows; yields each window's own frames."""
    frames = hidden.shape[1]
    for first in range(0, frames, WINDOW - 2 * MARGIN):
        start, end = max(0, first - MARGIN), min(frames, first + WINDOW - MARGIN)
        own = slice(first - start, min(frames, first + WINDOW - 2 * MARGIN) - start)
        yield encoder.transform(hidden[:, start:end], [end - start])[0, own].float()
