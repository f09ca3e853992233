"""Rows in text form → records: the inverse of `templates`.

Text can hide a marker where ids can't: content with a marker or a unit in it is refused, not
guessed at.  Time is proportional to the row, whatever stands in it.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from speechgpt_lib.errors import UserError, shortened
from speechgpt_lib.instructions.records import NO_UNITS, ChainRecord, CrossModalRecord, Record
from speechgpt_lib.instructions.templates import MARKERS, TEMPLATES
from speechgpt_lib.units.sequence import EOSP, SOSP, parse_units

OLD_END = "<ea>"  # what the seed prints for <eoa>
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_STRANGE = re.compile(f"{SOSP}|{EOSP}|{OLD_END}|{_MARKER.pattern}|<[0-9]+>")
# Templates as (literal, slot, literal, slot, …, literal), and what may follow the end marker.
_CUT = {
    (name, kind): (re.split(r"\{(\w+)\}", prompt + answer), tail)
    for name, group in TEMPLATES.items()
    for kind, (prompt, answer, tail) in group.items()
}


class BadRow(UserError):
    """A row that can't be used; `reason` is one of a few names to count by, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, shortened(detail, 300)


def parse_row(
    text: str, unit_count: int | None = None, templates: str | None = None
) -> tuple[Record, str]:
    """A row in text form → (its record without id, voice and kind, its templates).

    Units must be below `unit_count`; None for `templates` takes whichever fit.  Raises BadRow where
    none fits, units are unbalanced, missing or out of range, a text is empty or has a marker in it.
    """
    text = text.replace(OLD_END, "<eoa>")
    for (name, kind), (pieces, tail) in _CUT.items():
        if templates in (None, name) and (slots := _fit(text, pieces, tail)):
            if kind != "cross_modal":
                return _chain(kind, slots, unit_count), name
            return _cross_modal(slots, unit_count, stop=name == "paper"), name
    raise BadRow(*_why(text))


def marker_in(text: str) -> str | None:
    """The first marker or unit in a text that should be plain, or None."""
    found = _STRANGE.search(text) if "<" in text or "[" in text else None
    return found[0] if found else None


def check_text(text: str, what: str) -> str:
    """The text itself; raises BadRow where it has no words, or could be taken for a marker."""
    if not text.strip():
        raise BadRow(f"empty {what}", f"the {what} has no words")
    if strange := marker_in(text):
        raise BadRow("marker in text", f"the {what} has {strange} in it")
    return text


def check_units(units: np.ndarray, unit_count: int) -> None:
    """Raises BadRow for units (n,) that are none, or outside 0 to `unit_count` - 1."""
    if len(units) == 0:
        raise BadRow("no units", "there are no units")
    if len(bad := units[(units < 0) | (units >= unit_count)]):
        known = f"the inventory has 0 to {unit_count - 1}"
        raise BadRow("unit out of range", f"unit {bad[0]}, but {known}")


def _fit(text: str, pieces: list[str], tail: str) -> dict[str, str] | None:
    """The slots of a row that this template has made, else None; a slot ends where it goes on."""
    first, values = pieces[0], {}
    if not text.startswith(first):
        return None
    rest = text[len(first) :]
    for slot, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        values[slot], found, rest = rest.partition(literal)
        if not found or _MARKER.search(values[slot]):
            return None
    return values if rest in ("", tail) else None


def _cross_modal(slots: dict[str, str], unit_count: int | None, stop: bool) -> Record:
    """`stop`: whether the template has dropped a full stop of the description for its own."""
    given, answer = slots["input"], slots["output"]
    heard, spoken = (SOSP in part or EOSP in part for part in (given, answer))
    if not (heard or spoken):
        raise BadRow("no units", f"neither the input nor the answer has {SOSP}…{EOSP}")
    if heard and spoken:
        raise BadRow("marker in text", "input and answer have units, one of them should be text")
    task, units, text = ("asr", given, answer) if heard else ("tts", answer, given)
    description = check_text(slots["description"], "description")
    description += "." * (stop and description[-1] not in ".?!")
    text = check_text(text, "text")
    return CrossModalRecord("", task, description, text, "", _units(units, unit_count))


def _chain(kind: str, slots: dict[str, str], unit_count: int | None) -> Record:
    heard = kind.startswith("speech")
    instruction = check_text(slots["tq" if heard else "instruction"], "instruction")
    response = check_text(slots["ta"], "response")
    asked = _units(slots["instruction"], unit_count) if heard else NO_UNITS
    said = _units(slots["ua"], unit_count) if "ua" in slots else NO_UNITS
    return ChainRecord("", kind, "", instruction, response, asked, said)


def _units(text: str, unit_count: int | None) -> np.ndarray:
    if text.strip() == SOSP + EOSP:
        raise BadRow("no units", "there are no units")
    try:
        units = parse_units(text)
    except UserError as error:
        raise BadRow("unbalanced units", str(error)) from None
    if unit_count is not None:
        check_units(units, unit_count)
    return units


def _why(text: str) -> tuple[str, str]:
    """(reason, detail) for a text that fits no template: the most telling thing about it."""
    markers = _MARKER.findall(text)
    if not text.startswith("[Human]:"):
        return "template", f"it starts with {text[:20]!r}, expected [Human]:"
    if "[SpeechGPT]" not in markers:
        return "template", "it has no [SpeechGPT]"
    if markers[-1] not in ("<eoa>", "<eos>"):
        return "no end marker", f"it ends in {text[-20:]!r}, expected <eoa> or <eos>: was it cut?"
    known = [_MARKER.findall("".join(pieces[::2])) for pieces, _ in _CUT.values()]
    if markers not in known and any(Counter(wanted) < Counter(markers) for wanted in known):
        found = " ".join(markers[:12])
        return "marker in text", f"its markers are {found}: one too many, or two rows in one"
    return "template", f"it fits no template of paper or release: {text[:60]!r}…"
