"""Units as sequences: merging and the written form have inverses, and hostile strings are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.units.sequence import check_range, expand, format_units, merge, parse_units

frames = st.lists(st.integers(0, 5), max_size=60)


@given(frames)
def test_expand_undoes_merge(units: list[int]) -> None:
    merged, durations = merge(units)
    assert expand(merged, durations).tolist() == units
    assert not (merged[1:] == merged[:-1]).any() and durations.sum() == len(units) and (durations > 0).all()


@given(st.lists(st.integers(0, 999), min_size=1, max_size=60))
def test_parse_undoes_format(units: list[int]) -> None:
    text = format_units(units)
    assert " " not in text and parse_units(f"  {text}\n", 1000).tolist() == units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "unbalanced"),
        ("<sosp><1><2>", "unbalanced"),
        ("<sosp><1><eosp><eosp>", "unbalanced"),
        ("<sosp><eosp>", "empty"),
        ("<eosp><1><sosp>", "must start"),
        ("say <sosp><1><eosp>", "must start"),
        ("<sosp><1>and<2><eosp>", "no unit"),
        ("<sosp><1> <2><eosp>", "no unit"),
        ("<sosp><-1><eosp>", "no unit"),
        ("<sosp><1.5><eosp>", "no unit"),
        ("<sosp><20><eosp>", "out of range"),
        ("<sosp><99999999999999999999><eosp>", "no unit"),
    ],
)
def test_hostile_strings_are_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_units(text, 20)


def test_bad_durations_and_ranges_are_refused() -> None:
    with pytest.raises(UserError, match="one duration"):
        expand([1, 2], [1])
    with pytest.raises(UserError, match="negative"):
        expand([1], [-1])
    with pytest.raises(UserError, match="out of range"):
        check_range(np.array([3, -1]), 5)
