"""Rows back to what they are made of: the inverse of `templates`, for the text form and (`language_model/parsing.py`) for ids.

Markers are looked for first: their order says which template a row can be, and what lies between two of them is compared with the
template piece by piece.  That takes time in proportion to the row, whatever stands in it.  Text can hide a marker where ids can't, so a
text in which a marker or a unit stands where content should be is refused, not guessed at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speechgpt_lib.errors import UserError
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
STRANGE = re.compile("|".join(re.escape(m) for m in (SOSP, EOSP, OLD_END, *MARKERS)) + "|<[0-9]+>")
_SPLIT = re.compile("(" + "|".join(re.escape(m) for m in (OLD_END, *MARKERS)) + ")")
_NOTHING = np.array([], dtype=np.int64)

Piece = tuple[str, ...]  # literal, slot, literal, slot, …, literal


class BadRow(UserError):
    """A row that is not well-formed; `reason` is one of a few names to count by, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Shape:
    """A template cut at its markers: `pieces[k]` stands before `markers[k]`, the last one at the end."""

    templates: str
    kind: str  # "cross_modal" or the format of a chain
    markers: tuple[str, ...]
    pieces: tuple[Piece, ...]


@functools.cache
def shapes() -> tuple[Shape, ...]:
    """All templates."""
    found = [("paper", name, *parts, CHAIN_END) for name, parts in CHAIN.items()]
    found += [("release", "speech_speech", *RELEASE_CHAIN, CHAIN_END)]
    found += [(name, "cross_modal", *parts, TEXT_TAIL[name]) for name, parts in CROSS_MODAL.items()]
    made = []
    for templates, kind, prompt, answer, tail in found:
        cut = _SPLIT.split(prompt + answer + tail)
        made.append(
            Shape(
                templates,
                kind,
                tuple(cut[1::2]),
                tuple(tuple(re.split(r"\{(\w+)\}", piece)) for piece in cut[::2]),
            )
        )
    return tuple(made)


def fit(piece: Piece, text: str) -> dict[str, str] | None:
    """The values of the slots of `piece` if `text` is made by it, else None.  A slot ends at the first place where the template goes on."""
    literals, slots = piece[::2], piece[1::2]
    if not slots:
        return {} if text == literals[0] else None
    if len(text) < len(literals[0]) + len(literals[-1]) or not (
        text.startswith(literals[0]) and text.endswith(literals[-1])
    ):
        return None
    rest, values = text[len(literals[0]) : len(text) - len(literals[-1])], {}
    for slot, literal in zip(slots[:-1], literals[1:-1], strict=True):
        value, separator, rest = rest.partition(literal)
        if not separator:
            return None
        values[slot] = value
    return values | {slots[-1]: rest}


def fit_row(
    shape: Shape, markers: Sequence[str], pieces: Sequence[str], literal: Callable[[str], str] = str
) -> dict[str, str] | None:
    """The slots of a row that is cut at its markers, or None if it isn't of this shape; `literal` writes template text as rows do.

    What follows the end marker may be missing: it exists in the published text form only.
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


def parse_row(text: str, unit_count: int | None = None, templates: str | None = None) -> dict:
    """A row in text form → its record, as the sets hold it, and the `templates` it is written in.

    Cross-modal: task, description, text, units.  Chain of modality: format, instruction, response, instruction_units, response_units
    (empty where the format has none).

    Args:
        unit_count: ids must be below it, if given.
        templates: "paper" or "release"; None takes whichever fits.

    Raises:
        BadRow: it fits no template, a unit string is unbalanced, empty or out of range, a text is empty or has a marker in it.
    """
    cut = _SPLIT.split(text)
    markers = tuple("<eoa>" if marker == OLD_END else marker for marker in cut[1::2])
    for shape in shapes():
        if (
            templates in (None, shape.templates)
            and (values := fit_row(shape, markers, cut[::2])) is not None
        ):
            if shape.kind == "cross_modal":
                return _cross_modal(shape.templates, values, unit_count)
            return _chain(shape.templates, shape.kind, values, unit_count)
    raise BadRow(*_why(text, markers))


def marker_in(text: str) -> str | None:
    """The first marker or unit in a text that should be plain, or None."""
    found = STRANGE.search(text) if "<" in text or "[" in text else None
    return found[0] if found else None


def _cross_modal(templates: str, values: dict[str, str], unit_count: int | None) -> dict:
    given, answer = values["input"], values["output"]
    spoken = [SOSP in part or EOSP in part for part in (given, answer)]
    if spoken == [False, False]:
        raise BadRow("no units", f"neither the input nor the answer has {SOSP}…{EOSP}")
    if spoken == [True, True]:
        raise BadRow(
            "marker in text", "both the input and the answer have units, one of them should be text"
        )
    units, text = (given, answer) if spoken[0] else (answer, given)
    description = _plain(values["description"], "description")
    if templates == "paper" and description[-1] not in ".?!":
        description += "."  # which the template has dropped for its own
    return {
        "task": "asr" if spoken[0] else "tts",
        "description": description,
        "text": _plain(text, "text"),
        "units": _units(units, unit_count),
        "templates": templates,
    }


def _chain(templates: str, kind: str, values: dict[str, str], unit_count: int | None) -> dict:
    spoken = kind.startswith("speech")
    return {
        "format": kind,
        "instruction": _plain(values["tq"] if spoken else values["instruction"], "instruction"),
        "response": _plain(values["ta"], "response"),
        "instruction_units": _units(values["instruction"], unit_count) if spoken else _NOTHING,
        "response_units": _units(values["ua"], unit_count) if "ua" in values else _NOTHING,
        "templates": templates,
    }


def _plain(text: str, what: str) -> str:
    if not text.strip():
        raise BadRow(f"empty {what}", f"the {what} has no words")
    if strange := marker_in(text):
        raise BadRow("marker in text", f"the {what} has {strange} in it")
    return text


def _units(text: str, unit_count: int | None) -> np.ndarray:
    try:
        return parse_units(text, unit_count)
    except UserError as error:
        message = str(error)
        if "out of range" in message:
            raise BadRow("unit out of range", message) from None
        raise BadRow("no units" if "is empty" in message else "unbalanced units", message) from None


def _why(text: str, markers: Sequence[str]) -> tuple[str, str]:
    """(reason, detail) for a text that fits no template: the most telling thing about it."""
    if not text.startswith("[Human]:"):
        return "template", f"it starts with {text[:20]!r}, expected [Human]:"
    if "[SpeechGPT]" not in markers:
        return "template", "it has no [SpeechGPT]"
    if markers[-1] not in ("<eoa>", "<eos>"):
        return (
            "no end marker",
            f"it ends in {text[-20:]!r}, expected <eoa> or <eos>: was it cut off?",
        )
    if tuple(markers) not in {shape.markers for shape in shapes()} and any(
        _contains(markers, shape.markers) for shape in shapes()
    ):
        return (
            "marker in text",
            f"its markers are {' '.join(markers[:12])}: one stands where text should be, or it is two rows in one",
        )
    return "template", f"it fits no template of paper or release: {text[:60]!r}…"


def _contains(markers: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` are left of `markers` when some are taken away."""
    rest = iter(markers)
    return all(marker in rest for marker in wanted)
