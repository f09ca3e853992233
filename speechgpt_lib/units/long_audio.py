"""Recordings of any length → features.

- `exact` equals encoding the recording at once: norm statistics of the whole, then the front end in
  pieces, then attention over it all.  Beyond 300 s it becomes **approximate**: attention within
  windows of 60 s whose outer 10 s are thrown away.
- `release` gives the published units: chunks of 100 s, which lose frames at their edges.
"""

import numpy as np
import torch
from torch import Tensor

from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.units import features

RELEASE_CHUNK = 1_600_000  # samples, in the published feature reader
ATTENTION_LIMIT_S = 300.0  # for the memory that scores of attention take
# In frames of 20 ms, of which other encoders have as much time:
PIECE = 1500  # of the front end at a time: 30 s
WINDOW = 3000  # of attention: 60 s,
MARGIN = 500  # of which 10 s on each side only give context
MODES = ("exact", "release")


@torch.inference_mode()
def encode_long(
    encoder: features.FeatureEncoder, wave: np.ndarray, mode: str = "exact"
) -> tuple[Tensor, int, bool]:
    """float32 (n,) at 16 kHz → float32 (frames, width), samples dropped, approximate or not."""
    features.check_choice("way to treat long audio", mode, MODES)
    hop, least = encoder.hop, encoder.window
    features.check_length(len(wave), least)
    count, window, margin = (frames * HOP // hop for frames in (PIECE, WINDOW, MARGIN))
    if mode == "release":  # as the published reader cuts: a last chunk without a frame is dropped
        starts = range(0, len(wave), RELEASE_CHUNK)
        chunks = [wave[start : start + RELEASE_CHUNK] for start in starts]
        dropped = len(chunks.pop()) if len(chunks[-1]) < least else 0
        return torch.cat([encoder([chunk])[0] for chunk in chunks]), dropped, False
    samples, sums, parts = encoder.samples(wave), [], []
    _, kernel, stride = encoder.convolutions[0]  # whose norm asks for statistics of the whole
    step = count * hop // stride
    for first in range(0, (len(samples) - kernel) // stride + 1, step):
        piece = samples[first * stride : (first + step - 1) * stride + kernel].to(encoder.device)
        views = features.windows(piece[None, :, None], kernel, stride)
        sums.append(features.window_sums(views, [views.shape[1]]))
    sums = [sum(pieces) for pieces in zip(*sums, strict=True)]
    for first in range(0, len(samples) - least + 1, count * hop):
        # Pieces overlap by what a frame needs, so their frames are the whole's.
        piece = samples[first : first + (count - 1) * hop + least].to(encoder.device)
        parts.append(encoder.front_end(piece[None], [len(piece)], sums)[0])
    hidden = torch.cat(parts, dim=1)  # (1, frames, width)
    frames = hidden.shape[1]
    if len(samples) <= ATTENTION_LIMIT_S * SAMPLE_RATE:
        return encoder.transform(hidden, [frames])[0].float(), 0, False
    parts, step = [], window - 2 * margin  # frames that a window keeps
    for first in range(0, frames, step):
        start, end = max(0, first - margin), min(frames, first + step + margin)
        own = slice(first - start, first - start + step)
        parts.append(encoder.transform(hidden[:, start:end], [end - start])[0, own].float())
    return torch.cat(parts), 0, True
