"""What a language model answers → task descriptions: a list is found in the text, its items are tidied, checked and compared.

Nothing here knows where the text came from: `description_writer` asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from speechgpt_lib.instructions.descriptions import SEPARATOR

MOST_WORDS, FEWEST_WORDS, MOST_SENTENCES = 40, 3, 2

# What `validate` says, and how refused lines are counted.
EMPTY = "empty"
LINE_BREAK = "a line break"
NOT_ASCII = "not plain English letters (ASCII)"
TEMPLATE = f"< > [ ] {{ }} or {SEPARATOR!r}"  # it would end the description, or pass for a marker, in a training row
TOO_SHORT = f"fewer than {FEWEST_WORDS} words"
TOO_LONG = f"more than {MOST_WORDS} words"
TOO_MANY = f"more than {MOST_SENTENCES} sentences"
NO_END = "no . ? or ! at the end"
REPEATED = "repeated"

# "1. x", "1) x", "(1) x", "1: x", "**1.** x", "Task 1: x" and "- x", "* x", "• x"; a number that is part of a word ("1.5") is no mark.
_NUMBER = r"[*_]{0,2}(?:(?:task|instruction)\s+)?(?:\(\d{1,4}\)|\d{1,4}[.):])[*_]{0,2}"
_MARK = re.compile(rf"\s*(?:(?:[-*•‣–+]\s+)?{_NUMBER}|[-*•‣–+])(?=\s|$)", re.IGNORECASE)
_HEADING = re.compile(r"\s*(?:#|[*_]{2}[^*_]+(?<![.?!])[*_]{2}\s*$|---|.*:[*_\s]*$)")
_CHATTER = re.compile(  # the words round a list that has no marks; "Let me know what is said." is a description
    r"(?:sure|certainly|of course|absolutely|great)[,.!]|here are\b|(?:i )?hope (?:this|these|that)\b|(?:let me know|feel free to \w+) if\b"
    r"|i(?:'m| am) (?:sorry|unable)|i (?:can't|cannot|can not|apologi[sz]e)\b|as an ai\b|these (?:are|instructions|tasks)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_PLAIN = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": "-",
        "\u2011": "-",
        "…": "...",
        "\u00a0": " ",
    }
)


def parse_list(text: str) -> list[str]:
    """The items of the list in `text`, in order: numbered, bulleted, JSON, in a fenced block, or, where no line has a mark, line by line.

    Emphasis and quotes round an item are taken off, wrapped lines joined; the words before and after the list are left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.rpartition("</think>")[2].partition("<think>")[
        0
    ]  # what some models write before they answer
    blocks = [block for block in _FENCE.findall(text) if block.strip()]
    text = "\n".join(blocks) if blocks else re.sub(r"^[ \t]*```.*$", "", text, flags=re.MULTILINE)
    if (found := _json_strings(text)) is not None:
        items = found
    elif any(_MARK.match(line) for line in text.split("\n")):
        items = _marked(text.split("\n"))
    else:
        items = [
            line
            for line in text.split("\n")
            if not (_HEADING.match(line) or _CHATTER.match(line.strip().translate(_PLAIN)))
        ]
    return [item for item in map(_undress, items) if item]


def tidy(line: str) -> str:
    """`line` in the form of the files: straight quotes, single spaces, a full stop where nothing ends it.  Line breaks stay."""
    line = re.sub(r"[^\S\n\r]+", " ", line.translate(_PLAIN)).strip()
    return (
        line + "."
        if line
        and (line[-1].isalnum() or line[-1] in "\"')")
        and not re.search(r"[.?!][\"')]+$", line)
        else line
    )


def validate(line: str) -> str | None:
    """Why `line` can't be a description (one of the constants above), or None.  ASCII stands for English: no more is looked at."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", line)
    faults = (
        (EMPTY, not line.strip()),
        (LINE_BREAK, len(line.splitlines()) > 1 or line.endswith(("\n", "\r"))),
        (NOT_ASCII, not (line.isascii() and line.isprintable())),
        (TEMPLATE, bool(set(line) & set("<>[]{}")) or SEPARATOR.lower() in line.lower()),
        (TOO_SHORT, len(words) < FEWEST_WORDS),
        (TOO_LONG, len(words) > MOST_WORDS or len(line.split()) > MOST_WORDS),
        (TOO_MANY, len(re.findall(r"[.?!]+[\"')]*(?=\s|$)", line)) > MOST_SENTENCES),
        (NO_END, not line.endswith((".", "?", "!"))),
    )
    return next((reason for reason, found in faults if found), None)


def normalize(line: str) -> str:
    """What two descriptions that say the same have in common: their lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", line.lower())


def sift(
    lines: Iterable[str], known: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tidied `lines` → (those that can be used and aren't among `known`, the others as (line, reason)), in order."""
    seen, good, refused = {normalize(line) for line in known}, [], []
    for line in map(tidy, lines):
        reason = validate(line) or (REPEATED if normalize(line) in seen else None)
        if reason:
            refused.append((line, reason))
        else:
            seen.add(normalize(line))
            good.append(line)
    return good, refused


def _json_strings(text: str) -> list[str] | None:
    """The strings of a JSON list in `text`, or of the first list in a JSON object; None where there is none."""
    for piece in (text, text[text.find("[") : text.rfind("]") + 1]):
        try:
            value = json.loads(piece)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(value, dict):
            value = next((v for v in value.values() if isinstance(v, list)), None)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return None


def _marked(lines: list[str]) -> list[str]:
    """The items of a list with marks.  A line without one goes on with the item above it, but not after an empty line or as a heading.

    After the last item such a line is the model's farewell, unless it is indented or the item has no end yet.
    """
    last = max(index for index, line in enumerate(lines) if _MARK.match(line))
    items, goes_on = [], False
    for index, line in enumerate(lines):
        if mark := _MARK.match(line):
            items.append(line[mark.end() :].strip())
            goes_on = True
        elif not line.strip() or (_HEADING.match(line) and not line[0].isspace()):
            goes_on = False
        elif goes_on and (
            index < last or line[0].isspace() or not re.search(r"[.?!][\"')*_]*$", items[-1])
        ):
            items[-1] = f"{items[-1]} {line.strip()}".strip()
        else:
            goes_on = False
    return items


def _undress(item: str) -> str:
    """An item without emphasis, and without quotes or backticks that enclose all of it."""
    item = item.strip().replace("**", "").replace("__", "").strip()
    while found := re.fullmatch(r"([*_`\"'“‘«])(.+?)([*_`\"'”’»])([.?!]?),?", item, re.DOTALL):
        opening, inner, closing, end = found.groups()
        if (
            closing != {"“": "”", "‘": "’", "«": "»"}.get(opening, opening)
            or opening in inner
            or not inner.strip()
        ):
            break
        item = inner.strip() + ("" if inner.strip()[-1] in ".?!" else end)
    return item
