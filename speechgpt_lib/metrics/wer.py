"""Word error rate: turns pairs of reference and recognised text into counts of wrong words.

Texts are compared as they stand, word by word, so normalise both sides in the same way first.
"""

from __future__ import annotations

from collections.abc import Sequence

import jiwer


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substituted, deleted and inserted words of the best alignment, and the number of words in `reference`.

    Words are separated by any white space.  Either text may be empty: every word of the other is then an error.
    """
    expected, heard = reference.split(), hypothesis.split()
    if not expected or not heard:
        return max(len(expected), len(heard)), len(expected)
    counts = jiwer.process_words(" ".join(expected), " ".join(heard))
    return counts.substitutions + counts.deletions + counts.insertions, len(expected)


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Pooled word error rate: all errors over all reference words, so long sentences weigh more.

    It can exceed 1.  Where no reference has a word, each inserted word counts as one whole error.
    Raises ValueError when the two lists differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"each text needs its reference: found {len(references)} references, {len(hypotheses)} hypotheses"
        )
    counts = [word_errors(*pair) for pair in zip(references, hypotheses, strict=True)]
    return sum(errors for errors, _ in counts) / max(sum(words for _, words in counts), 1)
