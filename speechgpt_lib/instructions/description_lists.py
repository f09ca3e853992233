"""A language model's answer → task descriptions: its list is found, tidied, checked, compared.

Nothing here knows where the text came from: `description_writer` asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from speechgpt_lib.instructions.descriptions import FORBIDDEN, SEPARATOR

MOST_WORDS, FEWEST_WORDS, MOST_SENTENCES = 40, 3, 2
# What `validate` says, and how refused lines are counted.
EMPTY, LINE_BREAK, REPEATED = "empty", "a line break", "repeated"
NOT_ASCII, NO_END = "not plain English letters (ASCII)", "no . ? or ! at the end"
TEMPLATE = f"< > [ ] {{ }} or {SEPARATOR!r}"  # in a row they would be markers, or end it
TOO_SHORT, TOO_LONG = f"fewer than {FEWEST_WORDS} words", f"more than {MOST_WORDS} words"
TOO_MANY = f"more than {MOST_SENTENCES} sentences"

# "1. x", "1) x", "(1) x", "1: x", "**1.** x", "Task 1: x" and "- x", "* x", "• x"; a number that is
# part of a word ("1.5") is no mark.
_NUMBER = r"[*_]{0,2}(?:(?:task|instruction)\s+)?(?:\(\d{1,4}\)|\d{1,4}[.):])[*_]{0,2}"
_MARK = re.compile(rf"\s*(?:(?:[-*•‣–+]\s+)?{_NUMBER}|[-*•‣–+])(?=\s|$)", re.IGNORECASE)
_HEADING = re.compile(r"\s*(?:#|[*_]{2}[^*_]+(?<![.?!])[*_]{2}\s*$|---|.*:[*_\s]*$)")
# The words round a list that has no marks; "Let me know what is said." is a description.
_CHATTER = re.compile(
    r"(?:sure|certainly|of course|absolutely|great)[,.!]|here are\b|as an ai\b"
    r"|(?:i )?hope (?:this|these|that)\b|(?:let me know|feel free to \w+) if\b"
    r"|i(?:'m| am) (?:sorry|unable)|i (?:can't|cannot|can not|apologi[sz]e)\b"
    r"|these (?:are|instructions|tasks)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_PLAIN = str.maketrans("‘’“”–—\u2011\u00a0", "''\"\"--- ") | {ord("…"): "..."}
_QUOTED = re.compile(r"([*_`\"'“‘«])(.+?)([*_`\"'”’»])([.?!]?),?", re.DOTALL)
_CLOSING = {"“": "”", "‘": "’", "«": "»"}


def parse_list(text: str) -> list[str]:
    """The items of the list in `text`: numbered, bulleted, JSON, fenced, or else line by line.

    Emphasis and quotes round an item and the words round the list go; wrapped lines are joined.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.rpartition("</think>")[2].partition("<think>")[0]  # thoughts before an answer
    blocks = [block for block in _FENCE.findall(text) if block.strip()]
    text = "\n".join(blocks) if blocks else re.sub(r"^[ \t]*```.*$", "", text, flags=re.MULTILINE)
    lines = text.split("\n")
    if (items := _json_strings(text)) is None:
        items = _marked(lines) if any(map(_MARK.match, lines)) else list(filter(_is_item, lines))
    return [item for item in map(_undress, items) if item]


def tidy(line: str) -> str:
    """`line` with straight quotes, single spaces, a full stop where none ends it."""
    line = re.sub(r"[^\S\n\r]+", " ", line.translate(_PLAIN)).strip()
    open_end = line[-1:].isalnum() or re.search(r"(?<![.?!\"')])[\"')]+$", line)
    return line + "." if open_end else line


def validate(line: str) -> str | None:
    """Why `line` can't be a description (a constant above), or None; ASCII stands for English."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", line)
    faults = {
        EMPTY: not line.strip(),
        LINE_BREAK: len(line.splitlines()) > 1 or line.endswith(("\n", "\r")),
        NOT_ASCII: not (line.isascii() and line.isprintable()),
        TEMPLATE: set(line) & FORBIDDEN or SEPARATOR.lower() in line.lower(),
        TOO_SHORT: len(words) < FEWEST_WORDS,
        TOO_LONG: len(words) > MOST_WORDS or len(line.split()) > MOST_WORDS,
        TOO_MANY: len(re.findall(r"[.?!]+[\"')]*(?=\s|$)", line)) > MOST_SENTENCES,
        NO_END: not line.endswith((".", "?", "!")),
    }
    return next((reason for reason, found in faults.items() if found), None)


def normalize(line: str) -> str:
    """What descriptions that say the same have in common: their lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", line.lower())


def sift(
    lines: Iterable[str], known: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tidied `lines` → (those of use that aren't among `known`, the others as (line, reason))."""
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
    """The strings of a JSON list in `text`, or of the first list in a JSON object, or None."""
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


def _is_item(line: str) -> bool:
    """Whether a line of a list without marks is an item, and not the words round it."""
    return not (_HEADING.match(line) or _CHATTER.match(line.strip().translate(_PLAIN)))


def _marked(lines: list[str]) -> list[str]:
    """The items of a list with marks; a line without one goes on with the item above it.

    Not so after an empty line, or as a heading; after the last item it is the model's farewell,
    unless it is indented or the item has no end yet.
    """
    last = max(index for index, line in enumerate(lines) if _MARK.match(line))
    items, goes_on = [], False
    for index, line in enumerate(lines):
        if mark := _MARK.match(line):
            items.append(line[mark.end() :].strip())
            goes_on = True
            continue
        ends = not line.strip() or (_HEADING.match(line) and not line[0].isspace())
        goes_on = goes_on and not ends
        if goes_on and index > last and not line[0].isspace():
            goes_on = not re.search(r"[.?!][\"')*_]*$", items[-1])
        if goes_on:
            items[-1] = f"{items[-1]} {line.strip()}".strip()
    return items


def _undress(item: str) -> str:
    """An item without emphasis, and without quotes or backticks that enclose all of it."""
    item = item.strip().replace("**", "").replace("__", "").strip()
    while found := _QUOTED.fullmatch(item):
        opening, inner, closing, end = found.groups()
        inner, wanted = inner.strip(), _CLOSING.get(opening, opening)
        if closing != wanted or opening in inner or not inner:
            break
        item = inner if inner[-1] in ".?!" else inner + end
    return item
