"""Text → whether it had better not be read aloud in a classroom, by a list of words.

A word list is coarse.  It misses whatever is put in other words, and everything that isn't English; and it over-blocks: history lessons
have wars and crimes, chemistry has alcohol.  It makes a set of dialogues milder, not safe: a teacher should look at a sample of what is
left, and write a list of their own where this one doesn't fit (`Filter.load(path)`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from speechgpt_lib.errors import UserError

SHORTEST_STEM = 3  # letters: a shorter one would match half the dictionary


@dataclass(frozen=True)
class Filter:
    """Terms by category, and the pattern made of them: one group a category, in order."""

    categories: tuple[str, ...]
    terms: dict[str, tuple[str, ...]]
    pattern: re.Pattern

    @classmethod
    def load(cls, path: Path | str | None = None) -> Filter:
        """The filter of a word list; None is the one that comes with the course.

        A line is `# category` or a term of it: a word or phrase, matched as a whole whatever its case, with `*` at its end if anything
        may follow (`gambl*`).  Blanks and hyphens of a phrase match one another.

        Raises:
            UserError: no such file, not UTF-8, no terms, a term before any category, or a star that isn't after 3 letters at the end.
        """
        source = (
            resources.files(__package__).joinpath("data", "classroom.txt")
            if path is None
            else Path(path)
        )
        try:
            text = source.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            what = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UserError(
                f"no word list at {source} ({what}): expected lines '# category', and under each its terms"
            ) from None
        terms = _parse(text, str(source))
        groups = (
            "|".join(map(_expression, sorted(found, reverse=True))) for found in terms.values()
        )
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(f'({group})' for group in groups)})(?!\w)")
        return cls(tuple(terms), terms, pattern)

    def reason(self, text: str) -> str | None:
        """`category: what was found` for the first term in a text, or None; a category goes before those below it in the list."""
        found = self.pattern.search(unicodedata.normalize("NFKC", text).lower().replace("’", "'"))
        return (
            f"{self.categories[found.lastindex - 1]}: {' '.join(found[0].split())}"
            if found
            else None
        )


def _parse(text: str, source: str) -> dict[str, tuple[str, ...]]:
    """The list's text → terms by category."""
    terms: dict[str, dict[str, None]] = {}
    category = None
    for number, line in enumerate(text.splitlines(), 1):
        term = " ".join(unicodedata.normalize("NFKC", line).lower().replace("’", "'").split())
        if term.startswith("#"):
            category = term[1:].strip()
        elif term and not category:
            raise UserError(
                f"{source}:{number}: {term!r} stands before any category: put a line '# category' above it"
            )
        elif term:
            stem = term.removesuffix("*")
            if (
                "*" in stem
                or not any(map(str.isalnum, stem))
                or stem != term
                and sum(map(str.isalpha, stem)) < SHORTEST_STEM
            ):
                raise UserError(
                    f"{source}:{number}: {term!r} is no term: expected words, with at most one * after {SHORTEST_STEM} letters"
                )
            terms.setdefault(category, {})[term] = None
    if not terms:
        raise UserError(
            f"{source} has no terms: expected lines '# category', and under each its terms"
        )
    return {category: tuple(found) for category, found in terms.items()}


def _expression(term: str) -> str:
    words = [re.escape(word) for word in re.split(r"[\s-]+", term.removesuffix("*"))]
    return r"[\s-]+".join(words) + r"\w*" * term.endswith("*")
