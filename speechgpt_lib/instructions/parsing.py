"""Rows back to records: the inverse of `templates`, for text and (`language_model`) for ids.

The order of its markers says which template a row can be; what lies between two of them is compared
with the template piece by piece, in time proportional to the row whatever stands in it.  Text can
hide a marker where ids can't: content with a marker or a unit in it is refused, not guessed at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.records import ChainRecord, CrossModalRecord, Record
from speechgpt_lib.instructions.templates import (
    CHAIN,
    CHAIN_END,
    CROSS_MODAL,
    MARKERS,
    RELEASE_CHAIN,
    TEXT_TAIL,
)
from speechgpt_lib.units.sequence import EOSP, SOSP, parse_units

OLD_END = "<ea>"  # what the seed prints for <eoa>
_STRANGE = re.compile("|".join(map(re.escape, (SOSP, EOSP, OLD_END, *MARKERS))) + "|<[0-9]+>")
_SPLIT = re.compile(f"({'|'.join(map(re.escape, (OLD_END, *MARKERS)))})")

Piece = tuple[str, ...]  # literal, slot, literal, slot, …, literal


class BadRow(UserError):
    """A row that can't be used; `reason` is one of a few names to count by, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Shape:
    """A template cut at its markers: `pieces[k]` is before `markers[k]`, the last at the end."""

    templates: str
    kind: str  # "cross_modal", or the format of a chain
    markers: tuple[str, ...]
    pieces: tuple[Piece, ...]


@functools.cache
def shapes() -> tuple[Shape, ...]:
    """All templates."""
    found = [("paper", name, *parts, CHAIN_END) for name, parts in CHAIN.items()]
    found += [("release", "speech_speech", *RELEASE_CHAIN, CHAIN_END)]
    found += [(name, "cross_modal", *parts, TEXT_TAIL[name]) for name, parts in CROSS_MODAL.items()]
    made = []
    for templates, kind, *texts in found:
        cut = _SPLIT.split("".join(texts))
        pieces = tuple(tuple(re.split(r"\{(\w+)\}", piece)) for piece in cut[::2])
        made.append(Shape(templates, kind, tuple(cut[1::2]), pieces))
    return tuple(made)


def fit(piece: Piece, text: str) -> dict[str, str] | None:
    """The values of the slots of `piece` if `text` is made by it, else None.

    A slot ends at the first place where the template goes on.
    """
    (first, *literals), slots = piece[::2], piece[1::2]
    if not slots:
        return {} if text == first else None
    last = literals.pop()
    long_enough = len(text) >= len(first) + len(last)
    if not (long_enough and text.startswith(first) and text.endswith(last)):
        return None
    rest, values = text[len(first) : len(text) - len(last)], {}
    for slot, literal in zip(slots[:-1], literals, strict=True):
        values[slot], separator, rest = rest.partition(literal)
        if not separator:
            return None
    return values | {slots[-1]: rest}


def fit_row(
    shape: Shape, markers: Sequence[str], pieces: Sequence[str], literal: Callable[[str], str] = str
) -> dict[str, str] | None:
    """The slots of a row that is cut at its markers, or None if it isn't of this shape.

    `literal` writes template text as the rows do.  The published text form alone has a tail.
    """
    if tuple(markers) != shape.markers or pieces[-1] not in ("", literal(shape.pieces[-1][0])):
        return None
    values: dict[str, str] = {}
    for piece, text in zip(shape.pieces[:-1], pieces[:-1], strict=True):
        found = fit(tuple(part if k % 2 else literal(part) for k, part in enumerate(piece)), text)
        if found is None:
            return None
        values |= found
    return values


def parse_row(
    text: str, unit_count: int | None = None, templates: str | None = None
) -> tuple[Record, str]:
    """A row in text form → (its record without id, voice and kind, its templates).

    Units must be below `unit_count`; None for `templates` takes whichever fit.  Raises BadRow where
    none fits, units are unbalanced, missing or out of range, a text is empty or has a marker in it.
    """
    cut = _SPLIT.split(text)
    markers = tuple("<eoa>" if marker == OLD_END else marker for marker in cut[1::2])
    for shape in shapes():
        fits = templates in (None, shape.templates)
        if fits and (values := fit_row(shape, markers, cut[::2])) is not None:
            made = _cross_modal if shape.kind == "cross_modal" else _chain
            return made(shape, values, unit_count), shape.templates
    raise BadRow(*_why(text, markers))


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
    bad = units[(units < 0) | (units >= unit_count)]
    if len(bad):
        detail = f"unit {bad[0]}, but the inventory has 0 to {unit_count - 1}"
        raise BadRow("unit out of range", detail)


def _cross_modal(shape: Shape, values: dict[str, str], unit_count: int | None) -> Record:
    given, answer = values["input"], values["output"]
    heard, spoken = (SOSP in part or EOSP in part for part in (given, answer))
    if not (heard or spoken):
        raise BadRow("no units", f"neither the input nor the answer has {SOSP}…{EOSP}")
    if heard and spoken:
        raise BadRow("marker in text", "input and answer have units, one of them should be text")
    task, units, text = ("asr", given, answer) if heard else ("tts", answer, given)
    description = check_text(values["description"], "description")
    if shape.templates == "paper" and description[-1] not in ".?!":
        description += "."  # which the template has dropped for its own
    text = check_text(text, "text")
    return CrossModalRecord("", task, description, text, "", _units(units, unit_count))


def _chain(shape: Shape, values: dict[str, str], unit_count: int | None) -> Record:
    nothing, heard = np.array([], dtype=np.int64), shape.kind.startswith("speech")
    instruction = check_text(values["tq" if heard else "instruction"], "instruction")
    response = check_text(values["ta"], "response")
    instruction_units = _units(values["instruction"], unit_count) if heard else nothing
    response_units = _units(values["ua"], unit_count) if "ua" in values else nothing
    units = (instruction_units, response_units)
    return ChainRecord("", shape.kind, "", instruction, response, *units)


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


def _why(text: str, markers: Sequence[str]) -> tuple[str, str]:
    """(reason, detail) for a text that fits no template: the most telling thing about it."""
    if not text.startswith("[Human]:"):
        return "template", f"it starts with {text[:20]!r}, expected [Human]:"
    if "[SpeechGPT]" not in markers:
        return "template", "it has no [SpeechGPT]"
    if markers[-1] not in ("<eoa>", "<eos>"):
        return "no end marker", f"it ends in {text[-20:]!r}, expected <eoa> or <eos>: was it cut?"
    known = {shape.markers for shape in shapes()}
    for wanted in known if markers not in known else ():
        rest = iter(markers)
        if all(marker in rest for marker in wanted):  # some could be taken away
            found = " ".join(markers[:12])
            return "marker in text", f"its markers are {found}: one too many, or two rows in one"
    return "template", f"it fits no template of paper or release: {text[:60]!r}…"
