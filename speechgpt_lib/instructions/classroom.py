"""Text → whether it had better not be read aloud in a classroom, by the list `data/classroom.txt`.

A word list misses what is put in other words, and all that isn't English; and it over-blocks:
history lessons have wars.  A teacher should look at what is left, and may change the list.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Filter:
    """Terms by category, and the pattern made of them: one group a category, in order."""

    terms: dict[str, list[str]]
    pattern: re.Pattern

    @classmethod
    def load(cls) -> Filter:
        """The filter of the list.

        A line is `# category` or a term of it: a word or phrase, matched as a whole whatever its
        case, with `*` at its end if anything may follow (`gambl*`).  Blanks and hyphens match one
        another.
        """
        text = (resources.files(__package__) / "data" / "classroom.txt").read_text("utf-8")
        terms: dict[str, list[str]] = {}
        for line in filter(None, text.splitlines()):
            if line.startswith("#"):
                found = terms[line[1:].strip()] = []
            else:
                found.append(line)
        groups = ("|".join(map(_expression, sorted(found)[::-1])) for found in terms.values())
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(f'({group})' for group in groups)})(?!\w)")
        return cls(terms, pattern)

    def reason(self, text: str) -> str | None:
        """`category: what was found` for the first term in a text, or None."""
        plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
        if found := self.pattern.search(plain):
            return f"{list(self.terms)[found.lastindex - 1]}: {' '.join(found[0].split())}"
        return None


def _expression(term: str) -> str:
    words = [re.escape(word) for word in re.split(r"[\s-]+", term.removesuffix("*"))]
    return r"[\s-]+".join(words) + r"\w*" * term.endswith("*")
