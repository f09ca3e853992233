"""Error rates, the share of units or words that are wrong, and confidence intervals of figures.

Units at phone borders are a matter of milliseconds, so two recordings of one sentence differ in
some of them as well: a unit error rate of 0.2 may sound right, which is why the judged word error
rate stands beside it.  Texts are compared as they stand: both sides are to be normalised before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

Symbols = np.ndarray | Sequence[int] | Sequence[str]  # units, or the words of a text
TAIL = (1 - 0.95) / 2  # the share of draws on either side of an interval


def unit_errors(reference: Symbols, hypothesis: Symbols) -> int:
    """Edit distance (n,) to (m,): units substituted, deleted or inserted in the best alignment."""
    return Levenshtein.distance(list(reference), list(hypothesis))


def unit_error_rate(references: Sequence[Symbols], hypotheses: Sequence[Symbols]) -> float:
    """Pooled error rate: all errors over all reference units, so long utterances weigh more.

    It can exceed 1.  Where no reference has a unit, each inserted unit counts as one whole error.
    Raises ValueError where the two lists differ in length.
    """
    if len(references) != len(hypotheses):
        found = f"found {len(references)} references, {len(hypotheses)} hypotheses"
        raise ValueError(f"each sequence needs its reference: {found}")
    errors = sum(map(unit_errors, references, hypotheses))
    return errors / max(sum(map(len, references)), 1)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Wrong words, as `unit_errors` counts, and the words of `reference`; white space separates."""
    expected = reference.split()
    return unit_errors(expected, hypothesis.split()), len(expected)


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Pooled word error rate, as `unit_error_rate` pools: all errors over all reference words."""
    return unit_error_rate([r.split() for r in references], [h.split() for h in hypotheses])


@dataclass(frozen=True)
class Estimate:
    """A figure over `n` items with its confidence interval, all in the figure's own unit."""

    value: float
    n: int
    low: float
    high: float


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, draws: int = 1000
) -> Estimate:
    """Sum of `numerators` over sum of `denominators`, both (items,), with its 95 % interval.

    Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): items are drawn again with
    replacement, and the middle 95 % of the figures of these draws are the interval.  It knows only
    the items at hand: when all of them agree its width is zero, however few they are.

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
    if draws < 1:
        raise ValueError(f"expected at least one draw, found draws={draws}")
    rng, n, value = np.random.default_rng(seed), len(top), float(top.sum() / bottom.sum())
    resamples = (rng.integers(0, n, n) for _ in range(draws))
    tops, bottoms = np.array([(top[drawn].sum(), bottom[drawn].sum()) for drawn in resamples]).T
    possible = bottoms > 0  # a draw may hold only items whose denominator is zero
    ratios = tops[possible] / bottoms[possible] if possible.any() else [value]
    low, high = np.quantile(ratios, [TAIL, 1 - TAIL])
    return Estimate(value, n, float(low), float(high))


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = 1000) -> Estimate:
    """Mean of `values`, (items,) numbers or truth values; see `bootstrap_ratio`."""
    return bootstrap_ratio(values, np.ones(len(values)), seed, draws)
