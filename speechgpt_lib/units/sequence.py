"""Unit sequences: one id a frame (20 ms) ↔ merged runs with durations ↔ `<sosp><12><7>…<eosp>`.

The text form is for people and the released JSONL; a language model has ids by arithmetic.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from speechgpt_lib.errors import UserError

SOSP, EOSP = "<sosp>", "<eosp>"
TOKEN = re.compile("<(sosp|eosp|[0-9]{1,9})>")


def merge(units: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Deduplicates: (frames,) → (units (n,), durations in frames (n,)), both int64."""
    units = np.asarray(units, dtype=np.int64)
    starts = np.flatnonzero(np.diff(units, prepend=units[:1] - 1))
    return units[starts], np.diff(np.append(starts, len(units)))


def expand(units: np.ndarray | list[int], durations: np.ndarray | list[int]) -> np.ndarray:
    """Undoes `merge`: repeats each unit for its duration in frames."""
    units, durations = (np.asarray(x, dtype=np.int64) for x in (units, durations))
    if (n := len(units)) != (m := len(durations)):
        raise UserError(f"{n} units but {m} durations: one duration a unit is needed")
    if (durations < 0).any():
        raise UserError("a duration is negative: durations are frames, 0 or more")
    return np.repeat(units, durations)


def format_units(units: np.ndarray | list[int]) -> str:
    """`[12, 7]` → `<sosp><12><7><eosp>` (paper's written form: no spaces)."""
    return SOSP + "".join(f"<{int(unit)}>" for unit in units) + EOSP


def parse_units(text: str, unit_count: int | None = None) -> np.ndarray:
    """`<sosp><12><7><eosp>` → int64 ids (n,); the inverse of `format_units`.

    White space at the ends is ignored.  Raises UserError where markers are missing, doubled or out
    of order, anything but units stands between them, there is no unit, or an id ≥ `unit_count`.
    """
    units = np.array(list(read_unit_stream([text])), dtype=np.int64)
    check_range(units, unit_count)
    return units


def read_unit_stream(pieces: Iterable[str], unit_count: int | None = None) -> Iterator[int]:
    """The text form in pieces, as it comes → unit ids, each as soon as it is complete.

    Raises UserError as `parse_units` does, as soon as it shows, after the units before.
    """
    form = f"expected {SOSP}<12><7>{EOSP}"
    text, begun, ended, count = "", False, False, 0
    for piece in pieces:
        text = text + piece if begun else (text + piece).removeprefix("\ufeff").lstrip()
        position = 0
        while match := TOKEN.match(text, position):
            position, token = match.end(), match[1]
            if ended or begun == (token == "sosp"):
                wrong = f"<{token}> does not belong there"
                raise UserError(f"unit string is unbalanced: {wrong}, {form}")
            begun, ended = True, token == "eosp"
            if token.isdigit():
                check_range([int(token)], unit_count)
                count += 1
                yield int(token)
        text = text[position:].lstrip() if ended else text[position:]
        unfinished = SOSP.startswith(text) or EOSP.startswith(text)
        if not unfinished and not re.fullmatch("<[0-9]{1,9}", text):
            raise UserError(f"unit string has something that is no unit at {text[:30]!r}: {form}")
    if not ended or text:
        missing = f"without {EOSP}" if begun else f"before {SOSP}"
        raise UserError(f"unit string is unbalanced: it stopped {missing}, {form}")
    if not count:
        raise UserError(f"unit string is empty: {form}, at least one unit")


def check_range(units: np.ndarray | list[int], unit_count: int | None) -> None:
    """Refuses ids outside 0 … unit_count − 1."""
    units = np.asarray(units)
    bad = [] if unit_count is None else units[(units < 0) | (units >= unit_count)]
    if len(bad):
        found = f"unit id {bad[0]} is out of range"
        raise UserError(f"{found}: this inventory has 0 to {unit_count - 1}")
