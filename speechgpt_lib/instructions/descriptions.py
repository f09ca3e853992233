"""Task descriptions: 100 ways to ask for a transcript, 100 to ask for a sentence to be spoken.

The paper had GPT-4 write its 200; these are our own.  A language model's answer can become more:
its list is found, tidied, checked, compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import read_text

TASKS = ("asr", "tts")
SEPARATOR = "This is input:"  # what ends a description in a row
FORBIDDEN = frozenset("<>[]{}")  # in a row they would pass for a marker or a slot
STRANGE = f"< > [ ] {{ }} or {SEPARATOR!r}"

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


@functools.cache
def load_descriptions(task: Literal["asr", "tts"]) -> tuple[str, ...]:
    """The descriptions of a task, in the order of the file."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    return _lines(resources.files(__package__) / "data" / f"{task}_descriptions.txt")


def choose_description(task: Literal["asr", "tts"], example_id: str, seed: int) -> str:
    """The description for an example: a hash of task, id and seed picks it, whatever the order."""
    return draw(load_descriptions(task), task, example_id, seed)


def draw(choices: Sequence[str], purpose: str, example_id: str, seed: int) -> str:
    """One of `choices`, by a hash of seed, purpose and id."""
    digest = hashlib.sha256(f"{seed} {purpose} {example_id}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def read_descriptions(path: Path) -> tuple[str, ...]:
    """Descriptions of a file, one a line, such as `speechgpt instruct describe` writes."""
    if not (found := _lines(path) if path.is_file() else ()):
        wanted = "expected one a line, such as speechgpt instruct describe writes"
        raise UserError(f"no descriptions at {path}: {wanted}")
    for line in found:
        if SEPARATOR in line or set(line) & FORBIDDEN:
            raise UserError(f"{path}: {line!r} has {STRANGE} in it: they belong to the templates")
    return found


def _lines(file) -> tuple[str, ...]:
    lines = read_text(file).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


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
    """Why `line` can't be a description, or None; ASCII stands for English."""
    words, lower = re.findall(r"[A-Za-z][A-Za-z'-]*", line), line.lower()
    sentences = re.findall(r"[.?!]+[\"')]*(?=\s|$)", line)
    faults = {
        "empty": not line.strip(),
        "a line break": len(line.splitlines()) > 1 or line.endswith(("\n", "\r")),
        "not plain English letters (ASCII)": not (line.isascii() and line.isprintable()),
        STRANGE: set(line) & FORBIDDEN or SEPARATOR.lower() in lower,
        "fewer than 3 words": len(words) < 3,
        "more than 40 words": max(len(words), len(line.split())) > 40,
        "more than 2 sentences": len(sentences) > 2,
        "no . ? or ! at the end": not line.endswith((".", "?", "!")),
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
        if reason := validate(line) or ("repeated" if normalize(line) in seen else None):
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
