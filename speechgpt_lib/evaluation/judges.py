"""The independent judges of a recipe's corpora, or why there are none."""

from __future__ import annotations

from collections.abc import Callable

from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.errors import UserError


def judges_if_installed(corpora: Corpora, say: Callable[[str], None]) -> dict[str, Judge]:
    """Judges by the suffix of their figures ("" and "_bigram" in the lab); {} with a reason where
    there are none."""
    try:
        judges = corpora.judges()
    except UserError as error:
        say(f"no word error rates of speech: {error}")
        return {}
    if not judges:
        say("no word error rates of speech: nothing here judges speech of an open vocabulary")
    return judges
