"""Targets of HuBERT that are everyone's: each sentence as one voice would have said it.

The clusters of a speaker's own spectrum tell who speaks, and HuBERT learns to hear that.  So the
sentence is spoken again by one voice; the phones of both say which frame is which (ContentVec, Qian
et al. 2022, arXiv 2204.09224, converts the voice instead).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES, SAMPLE_RATE


class Teacher(NamedTuple):
    """Whose sound an utterance gets its targets from."""

    wave: np.ndarray  # (samples,) at 16 kHz
    moments: np.ndarray  # (frames of the utterance,): the frame of `wave` that says the same


def same_moments(own: Sequence[Phone], other: Sequence[Phone], frames: int, of: int) -> np.ndarray:
    """For each of `frames` frames the one, of `of`, in which `other` says the same: int (frames,).

    Time runs evenly within a phone.  Raises ValueError where the phones differ.
    """
    labels = [[phone.label for phone in phones] for phones in (own, other)]
    if labels[0] != labels[1]:
        raise ValueError(f"two readings of a sentence have different phones: {labels}")
    middle, hop = MINIMUM_SAMPLES / 2 / SAMPLE_RATE, HOP / SAMPLE_RATE
    here, there = ([phones[0].start, *(p.end for p in phones)] for phones in (own, other))
    lead = min(here[0], there[0])
    tail = 60.0  # seconds: what is outside the phones stays as far from them
    here, there = ([t[0] - lead, *t, t[-1] + tail] for t in (here, there))
    moments = np.interp(np.arange(frames) * hop + middle, here, there)
    return np.clip(np.round((moments - middle) / hop), 0, of - 1).astype(int)
