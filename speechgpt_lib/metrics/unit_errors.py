"""Unit error rate: the share of units that are wrong in generated unit sequences.

The counterpart of the word error rate, one floor below the words.  Units at phone borders are a
matter of milliseconds, so two recordings of one sentence differ in some of them as well: a rate of
0.2 may sound right, which is why the judged word error rate stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

Symbols = np.ndarray | Sequence[int] | Sequence[str]  # units, or the words of a text


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
