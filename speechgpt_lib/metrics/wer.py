"""Word error rate: pairs of reference and recognised text → counts of wrong words.

Texts are compared as they stand, word by word, so normalise both sides in the same way first.
"""

from __future__ import annotations

from collections.abc import Sequence

from speechgpt_lib.metrics.unit_errors import unit_error_rate, unit_errors


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substituted, deleted and inserted words of the best alignment, and the words of `reference`.

    Words are separated by any white space; beside an empty text every word is an error.
    """
    expected = reference.split()
    return unit_errors(expected, hypothesis.split()), len(expected)


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Pooled word error rate, as `unit_error_rate` pools: all errors over all reference words."""
    return unit_error_rate([r.split() for r in references], [h.split() for h in hypotheses])
