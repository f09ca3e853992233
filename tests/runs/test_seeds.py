"""A shuffle by a seed is the same everywhere."""

from __future__ import annotations

from speechgpt_lib.runs.seeds import shuffled


def test_a_seeded_shuffle() -> None:
    items = list(range(10))
    assert shuffled(items, 0) == [6, 9, 0, 2, 4, 3, 5, 1, 8, 7]
    assert sorted(shuffled(items, 1)) == items == list(range(10))
    assert shuffled(items, 1) != shuffled(items, 0)
