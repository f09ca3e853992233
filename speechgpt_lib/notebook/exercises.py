"""The cases and reference solutions of every **Try it yourself**, by its id ("1.a": the first one of notebook 01).

A reference is written as a learner would write it, not as the library does it.  Each case is a tuple of arguments;
between them the cases of an exercise cover the empty input, the smallest one and whatever is usually forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """`reference(*case)` is the right answer for every case in `cases`."""

    cases: tuple[tuple[Any, ...], ...]
    reference: Callable


def _merge(units: list[int]) -> tuple[list[int], list[int]]:
    merged, durations = [], []
    for unit in units:
        if merged and merged[-1] == unit:
            durations[-1] += 1
        else:
            merged.append(unit)
            durations.append(1)
    return merged, durations


def _expand(units: list[int], durations: list[int]) -> list[int]:
    return [unit for unit, duration in zip(units, durations, strict=True) for _ in range(duration)]


EXERCISES: dict[str, Exercise] = {
    # Notebook 01: merge repeated units and keep how long each lasted; and back.
    "1.a": Exercise(cases=(([7, 7, 7, 3, 3, 9],), ([],), ([5],), ([1, 2, 1, 1],), ([0, 0, 0, 0],)), reference=_merge),
    "1.b": Exercise(cases=(([7, 3, 9], [3, 2, 1]), ([], []), ([5], [4]), ([1, 2, 1], [1, 1, 2])), reference=_expand),
}
