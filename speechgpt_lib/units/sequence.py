"""Unit sequences: one id a frame (20 ms) ↔ merged runs with durations ↔ the text form `<sosp><12><7>…<eosp>`.

The text form exists for people and for the released JSONL; inside the language model units are ids by arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from speechgpt_lib.errors import UserError

SOSP, EOSP = "<sosp>", "<eosp>"


def merge(units: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Collapse runs of equal units: (frames,) → (units (n,), durations in frames (n,)), both int64."""
    units = np.asarray(units, dtype=np.int64)
    if units.size == 0:
        return units, units.copy()
    starts = np.flatnonzero(np.concatenate(([True], units[1:] != units[:-1])))
    return units[starts], np.diff(np.append(starts, len(units)))


def expand(units: np.ndarray | list[int], durations: np.ndarray | list[int]) -> np.ndarray:
    """Undo `merge`: repeat each unit for its duration in frames."""
    units, durations = np.asarray(units, dtype=np.int64), np.asarray(durations, dtype=np.int64)
    if units.shape != durations.shape:
        raise UserError(
            f"{len(units)} units but {len(durations)} durations: one duration a unit is needed"
        )
    if (durations < 0).any():
        raise UserError("a duration is negative: durations are frames, 0 or more")
    return np.repeat(units, durations)


def format_units(units: np.ndarray | list[int]) -> str:
    """`[12, 7]` → `<sosp><12><7><eosp>` (paper's written form: no spaces)."""
    return SOSP + "".join(f"<{int(unit)}>" for unit in units) + EOSP


def parse_units(text: str, unit_count: int | None = None) -> np.ndarray:
    """`<sosp><12><7><eosp>` → int64 ids (n,); the inverse of `format_units`.

    White space at the ends is ignored.

    Raises:
        UserError: markers missing, doubled or out of order, anything but units between them, no unit, or an id ≥ `unit_count`.
    """
    stripped = text.strip()
    if stripped.count(SOSP) != 1 or stripped.count(EOSP) != 1:
        found = f"{stripped.count(SOSP)} × {SOSP} and {stripped.count(EOSP)} × {EOSP}"
        raise UserError(
            f"unit string is unbalanced: found {found}, expected exactly one of each, as in {SOSP}<12><7>{EOSP}"
        )
    if not (stripped.startswith(SOSP) and stripped.endswith(EOSP)):
        raise UserError(
            f"unit string must start with {SOSP} and end with {EOSP}: found {stripped[:40]!r}…"
        )
    inner = stripped[len(SOSP) : -len(EOSP)]
    match = re.fullmatch(r"(?:<[0-9]{1,9}>)*", inner)
    if not match:
        bad = re.sub(r"^(?:<[0-9]{1,9}>)*", "", inner)
        raise UserError(
            f"unit string has something that is no unit at {bad[:30]!r}: only <id> may stand between {SOSP} and {EOSP}"
        )
    units = np.array([int(unit) for unit in re.findall(r"[0-9]+", inner)], dtype=np.int64)
    if units.size == 0:
        raise UserError(f"unit string is empty: put at least one unit between {SOSP} and {EOSP}")
    check_range(units, unit_count)
    return units


def read_unit_stream(pieces: Iterable[str], unit_count: int | None = None) -> Iterator[int]:
    """The text form in pieces, as it comes → unit ids, each as soon as it is complete.

    Raises:
        UserError: as `parse_units`, as soon as it shows; the units before have been given by then.
    """
    text, begun, ended, count = "", False, False, 0
    for piece in pieces:
        text += piece
        while text := text if begun and not ended else text.lstrip():
            token, closed, rest = text.partition(">")
            if not (
                SOSP.startswith(token)
                or EOSP.startswith(token)
                or re.fullmatch("<[0-9]{0,9}", token)
            ):
                raise UserError(
                    f"unit stream has something that is no unit at {text[:30]!r}: only <id> may stand between {SOSP} and {EOSP}"
                )
            if not closed:
                break
            text = rest
            if (token == SOSP[:-1] and begun) or (token != SOSP[:-1] and not begun) or ended:
                raise UserError(
                    f"unit stream is unbalanced: found {token}> where it does not belong, expected {SOSP}<12><7>{EOSP}"
                )
            if token == SOSP[:-1]:
                begun = True
            elif token == EOSP[:-1]:
                ended = True
            elif token == "<":
                raise UserError(
                    f"unit stream has something that is no unit at '<>': only <id> may stand in {SOSP}…{EOSP}"
                )
            else:
                unit = int(token[1:])
                check_range(np.array([unit]), unit_count)
                count += 1
                yield unit
    if not ended or text.strip():
        raise UserError(
            f"unit stream is unbalanced: it stopped {'before' if not begun else 'without'} {SOSP if not begun else EOSP}"
        )
    if not count:
        raise UserError(f"unit stream is empty: put at least one unit between {SOSP} and {EOSP}")


def check_range(units: np.ndarray, unit_count: int | None) -> None:
    """Refuse ids outside 0 … unit_count − 1."""
    units = np.asarray(units)
    if unit_count is not None and units.size and (units.max() >= unit_count or units.min() < 0):
        bad = int(units[(units >= unit_count) | (units < 0)][0])
        raise UserError(
            f"unit id {bad} is out of range: this inventory has {unit_count} units, 0 to {unit_count - 1}"
        )
