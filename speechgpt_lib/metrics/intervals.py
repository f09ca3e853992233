"""Confidence intervals: turns per-item measurements into one figure and the range it would vary in on other items.

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): items are drawn again with replacement, the figure is
computed anew for each draw, and the middle `level` of the draws is the interval.  It knows only the items at hand: when
all of them agree, its width is zero, however few they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 2_000_000  # indices held at once (16 MB)


@dataclass(frozen=True)
class Estimate:
    """A figure over `n` items with its confidence interval, all in the figure's own unit."""

    value: float
    n: int
    low: float
    high: float


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Sum of `numerators` over sum of `denominators`, both (items,), with an interval from drawing whole items.

    For a word error rate, pass the errors and the reference words of each utterance: words of one utterance fail
    together, so they are drawn together.  The same seed gives the same interval.
    Raises ValueError when there is no item, the lengths differ, or a sum would be divided by zero.
    """
    top, bottom = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        raise ValueError(
            f"expected two lists of one length, at least one item; found shapes {top.shape} and {bottom.shape}"
        )
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise ValueError("expected finite numbers, found NaN or infinity")
    if (bottom < 0).any() or bottom.sum() == 0:
        raise ValueError("denominators must not be negative and must not all be zero")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"expected draws >= 1 and 0 < level < 1, found draws {draws} and level {level}"
        )

    totals = [
        (top[chosen].sum(1), bottom[chosen].sum(1)) for chosen in _resamples(len(top), draws, seed)
    ]
    tops, bottoms = (np.concatenate(parts) for parts in zip(*totals, strict=True))
    possible = bottoms > 0  # a draw may hold only items whose denominator is zero
    value = float(top.sum() / bottom.sum())
    if not possible.any():
        return Estimate(value, len(top), value, value)
    tail = (1 - level) / 2
    low, high = np.quantile(tops[possible] / bottoms[possible], [tail, 1 - tail])
    return Estimate(value, len(top), float(low), float(high))


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean of `values`, (items,) numbers or truth values, with its interval; see `bootstrap_ratio`."""
    return bootstrap_ratio(values, np.ones(len(values)), seed, draws, level)


def _resamples(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of (some draws, n) item indices, `draws` rows in all."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, draws, rows):
        yield rng.integers(0, n, size=(min(rows, draws - start), n))
