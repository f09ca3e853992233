"""The independent judges of a recipe's corpora, or why there are none."""

from __future__ import annotations

from collections.abc import Callable

from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.errors import UserError


def judges_if_installed(corpora: Corpora, say: Callable[[str], None]) -> dict[str, Judge]:
    """Judges by the suffix of their figures ("" and "_bigram" in the lab); {} with a reason where
    there are none."""
    reason = "nothing here judges speech of an open vocabulary"
    try:
        if judges := corpora.judges():
            return judges
    except UserError as error:
        reason = str(error)
    say(f"no word error rates of speech: {reason}")
    return {}
