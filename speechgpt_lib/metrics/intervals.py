"""Confidence intervals: one figure from many items, and the range it would have on other items.

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): items are drawn again with replacement,
the figure is computed anew for each draw, and the middle `level` of the draws is the interval.  It
knows only the items at hand: when all of them agree its width is zero, however few they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure over `n` items with its confidence interval, all in the figure's own unit."""

    value: float
    n: int
    low: float
    high: float


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Sum of `numerators` over sum of `denominators`, both (items,), with its interval.

    For a word error rate, pass the errors and the reference words of each utterance: words of one
    utterance fail together, so they are drawn together.  Raises ValueError where there is no item,
    the lengths differ, a number is not finite, or a sum would be divided by zero.
    """
    top, bottom = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        found = f"found shapes {top.shape} and {bottom.shape}"
        raise ValueError(f"expected two lists of one length, at least one item; {found}")
    if not np.isfinite([top, bottom]).all():
        raise ValueError("expected finite numbers, found NaN or infinity")
    if (bottom < 0).any() or bottom.sum() == 0:
        raise ValueError("denominators must not be negative and must not all be zero")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"expected draws >= 1 and 0 < level < 1, found {draws} and {level}")

    rng, n = np.random.default_rng(seed), len(top)
    resamples = (rng.integers(0, n, n) for _ in range(draws))
    tops, bottoms = np.array([(top[drawn].sum(), bottom[drawn].sum()) for drawn in resamples]).T
    possible = bottoms > 0  # a draw may hold only items whose denominator is zero
    value = float(top.sum() / bottom.sum())
    if not possible.any():
        return Estimate(value, n, value, value)
    tail = (1 - level) / 2
    low, high = np.quantile(tops[possible] / bottoms[possible], [tail, 1 - tail])
    return Estimate(value, n, float(low), float(high))


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, draws: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean of `values`, (items,) numbers or truth values; see `bootstrap_ratio`."""
    return bootstrap_ratio(values, np.ones(len(values)), seed, draws, level)
