"""Exercises of notebooks 00 to 02: the run directory, units, and the vocoder (see `exercises`)."""

from __future__ import annotations

import math
from collections import Counter

from speechgpt_lib.notebook.exercise_case import Exercise

_PIPELINE = {"corpus": [], "units": ["corpus"], "vocoder": ["corpus", "units"], "text model": [], "stage 1": ["text model", "units"]}


def _stale(inputs: dict[str, list[str]], changed: str) -> list[str]:
    found = {changed}
    while more := {step for step, needs in inputs.items() if found & set(needs)} - found:
        found |= more
    return sorted(found)


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


def _purity(units: list[int], labels: list[str]) -> float:
    pairs = Counter(zip(units, labels, strict=True))
    best = Counter()
    for (unit, _), count in pairs.items():
        best[unit] = max(best[unit], count)
    return sum(best.values()) / len(units)


def _bits_per_unit(units: list[int]) -> float:
    counts = Counter(units).values()
    return sum(count / len(units) * math.log2(len(units) / count) for count in counts)


def _lengths(frames: int, rates: list[int]) -> list[int]:
    lengths = []
    for rate in rates:
        frames *= rate
        lengths.append(frames)
    return lengths


def _frames(predictions: list[float]) -> list[int]:
    return [max(1, round(math.exp(value) - 1)) for value in predictions]


EXERCISES: dict[str, Exercise] = {
    # Notebook 00: what has to be made anew when one step has changed.
    "0.a": Exercise(
        cases=(
            (_PIPELINE, "units"),
            (_PIPELINE, "corpus"),
            (_PIPELINE, "vocoder"),
            ({"a": []}, "a"),
            ({"d": ["c"], "c": ["b"], "b": ["a"], "a": [], "e": []}, "a"),  # a chain listed backwards: one pass is not enough
        ),
        reference=_stale,
    ),
    # Notebook 01: merge repeated units and keep how long each lasted; and back; how pure and how costly units are.
    "1.a": Exercise(cases=(([7, 7, 7, 3, 3, 9],), ([],), ([5],), ([1, 2, 1, 1],), ([0, 0, 0, 0],)), reference=_merge),
    "1.b": Exercise(cases=(([7, 3, 9], [3, 2, 1]), ([], []), ([5], [4]), ([1, 2, 1], [1, 1, 2])), reference=_expand),
    "1.c": Exercise(
        cases=(
            ([4, 4, 4, 8, 8], ["a", "a", "b", "b", "b"]),
            ([1], ["a"]),
            ([1, 1, 1, 1], ["a", "b", "c", "d"]),
            ([1, 2, 3], ["a", "a", "a"]),
            ([2, 2, 2, 5, 5, 5], ["a", "a", "", "", "", "a"]),
        ),
        reference=_purity,
    ),
    "1.d": Exercise(cases=(([1, 2, 3, 4],), ([1, 1, 2, 2],), ([7],), ([7, 7, 7, 1],), ([0, 0, 0, 0, 1, 2, 3],)), reference=_bits_per_unit),
    # Notebook 02: the generator's lengths, and frames from the duration predictor's logarithms.
    "2.a": Exercise(cases=((1, [5, 4, 4, 2, 2]), (50, [5, 4, 4, 2, 2]), (7, [8, 8]), (3, []), (0, [5, 4])), reference=_lengths),
    "2.b": Exercise(cases=(([math.log(2), math.log(4)],), ([0.0],), ([-3.0],), ([1.3, 0.2, 2.7],), ([],)), reference=_frames),
}
