"""Text → whether it had better not be read aloud in a classroom, by the list `classroom.yaml`.

A word list misses what is put in other words, and all that isn't English; and it over-blocks:
history lessons have wars.  A teacher should look at what is left, and may change the list.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import yaml

TERMS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def unsafe(text: str) -> str | None:
    """`category: what was found` for the first term in a text, or None."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    if found := _PATTERN.search(plain):
        return f"{list(TERMS)[found.lastindex - 1]}: {' '.join(found[0].split())}"
    return None


def _expression(term: str) -> str:
    words = [re.escape(word) for word in re.split(r"[\s-]+", term.removesuffix("*"))]
    return r"[\s-]+".join(words) + r"\w*" * term.endswith("*")


# One group a category, in order; longer terms first.
_GROUPS = ("|".join(map(_expression, sorted(terms)[::-1])) for terms in TERMS.values())
_PATTERN = re.compile(rf"(?<!\w)(?:{'|'.join(f'({group})' for group in _GROUPS)})(?!\w)")
