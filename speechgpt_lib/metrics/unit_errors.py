"""Unit error rate: turns pairs of reference and generated unit sequences into the share of units that are wrong.

The counterpart of the word error rate one floor below the words.  Units at phone borders are a matter of a few milliseconds, so two
recordings of one sentence differ in some of them as well: a rate of 0.2 may sound right, which is why the judged WER stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def unit_errors(
    reference: np.ndarray | Sequence[int], hypothesis: np.ndarray | Sequence[int]
) -> int:
    """Substituted, deleted and inserted units of the best alignment of two sequences of ids (n,) and (m,)."""
    reference, hypothesis = np.asarray(reference), np.asarray(hypothesis)
    positions = np.arange(len(hypothesis) + 1)
    distances = positions  # from no reference unit at all to each beginning of the hypothesis
    for count, unit in enumerate(reference, 1):
        best = np.minimum(distances[1:] + 1, distances[:-1] + (hypothesis != unit))
        # Insertions run along the row: d[j] = min over i ≤ j of (best[i] − i) + j, one cumulative minimum.
        distances = np.minimum.accumulate(np.concatenate(([count], best)) - positions) + positions
    return int(distances[-1])


def unit_error_rate(references: Sequence[np.ndarray], hypotheses: Sequence[np.ndarray]) -> float:
    """Pooled unit error rate: all errors over all reference units, so long utterances weigh more.

    It can exceed 1.  Where no reference has a unit, each inserted unit counts as one whole error.
    Raises ValueError when the two lists differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"each sequence needs its reference: found {len(references)} references, {len(hypotheses)} hypotheses"
        )
    errors = sum(unit_errors(*pair) for pair in zip(references, hypotheses, strict=True))
    return errors / max(sum(len(reference) for reference in references), 1)
