"""Text → whether it had better not be read aloud in a classroom, by a list of words.

A word list misses what is put in other words, and all that isn't English; and it over-blocks:
history lessons have wars.  A teacher should look at what is left, or write an own list.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from speechgpt_lib.errors import UserError

EXPECTED = "expected lines '# category', and under each its terms"


@dataclass(frozen=True)
class Filter:
    """Terms by category, and the pattern made of them: one group a category, in order."""

    terms: dict[str, tuple[str, ...]]
    pattern: re.Pattern

    @classmethod
    def load(cls, path: Path | str | None = None) -> Filter:
        """The filter of a word list; None is the one that comes with the course.

        A line is `# category` or a term of it: a word or phrase, matched as a whole whatever its
        case, with `*` at its end if anything may follow (`gambl*`).  Blanks and hyphens match one
        another.  Raises UserError for a file that is missing, not UTF-8, or no such list.
        """
        source = Path(path) if path else resources.files(__package__) / "data" / "classroom.txt"
        try:
            text = source.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"no word list at {source} ({cause}): {EXPECTED}") from None
        terms = _parse(text, str(source))
        groups = ("|".join(map(_expression, sorted(found)[::-1])) for found in terms.values())
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(f'({group})' for group in groups)})(?!\w)")
        return cls(terms, pattern)

    def reason(self, text: str) -> str | None:
        """`category: what was found` for the first term in a text, or None."""
        if found := self.pattern.search(_plain(text)):
            return f"{list(self.terms)[found.lastindex - 1]}: {' '.join(found[0].split())}"
        return None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower().replace("’", "'")


def _parse(text: str, source: str) -> dict[str, tuple[str, ...]]:
    """The list's text → terms by category."""
    terms: dict[str, dict[str, None]] = {}
    category = None
    for number, line in enumerate(text.splitlines(), 1):
        term = " ".join(_plain(line).split())
        where = f"{source}:{number}: {term!r}"
        if term.startswith("#"):
            category = term[1:].strip()
        elif term and not category:
            raise UserError(f"{where} stands before any category: put '# category' above it")
        elif term:
            stem, star, more = term.partition("*")  # a short stem would match half the dictionary
            short = star and sum(map(str.isalpha, stem)) < 3
            if more or short or not any(map(str.isalnum, stem)):
                wanted = "expected words, with at most one * after 3 letters"
                raise UserError(f"{where} is no term: {wanted}")
            terms.setdefault(category, {})[term] = None
    if not terms:
        raise UserError(f"{source} has no terms: {EXPECTED}")
    return {category: tuple(found) for category, found in terms.items()}


def _expression(term: str) -> str:
    words = [re.escape(word) for word in re.split(r"[\s-]+", term.removesuffix("*"))]
    return r"[\s-]+".join(words) + r"\w*" * term.endswith("*")
