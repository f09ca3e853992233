"""Units as sequences: merging and the text form have inverses, hostile strings are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.units.sequence import (
    check_range,
    expand,
    format_units,
    merge,
    parse_units,
    read_unit_stream,
)

frames = st.lists(st.integers(0, 5), max_size=60)


@given(frames)
def test_expand_undoes_merge(units: list[int]) -> None:
    merged, durations = merge(units)
    assert expand(merged, durations).tolist() == units
    assert not (merged[1:] == merged[:-1]).any()
    assert durations.sum() == len(units) and (durations > 0).all()


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
        ("<eosp><1><sosp>", "unbalanced"),
        ("say <sosp><1><eosp>", "no unit"),
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


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=30),
    st.integers(1, 9),
    st.sampled_from(["", " ", "\n"]),
)
def test_a_stream_in_any_pieces_gives_the_units(units, size, around):
    text = around + format_units(units) + around
    pieces = [text[k : k + size] for k in range(0, len(text), size)]
    assert list(read_unit_stream(pieces, 1000)) == units


def test_units_of_a_stream_come_as_soon_as_they_are_complete():
    came = []

    def pieces():
        for piece in ("<so", "sp><1", "2", "><7>", "<eosp>"):
            came.append(len(given_so_far))
            yield piece

    given_so_far: list[int] = []
    for unit in read_unit_stream(pieces()):
        given_so_far.append(unit)
    assert given_so_far == [12, 7]
    assert came == [0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "before <sosp>"),
        ("<sosp><1>", "without <eosp>"),
        ("<sosp><eosp>", "empty"),
        ("<1><eosp>", "unbalanced"),
        ("<eosp>", "unbalanced"),
        ("<sosp><sosp><1><eosp>", "unbalanced"),
        ("<sosp><1><eosp><2>", "unbalanced"),
        ("<sosp><1><eosp> more", "no unit"),
        ("<sosp><1> <2><eosp>", "no unit"),
        ("<sosp><1x><eosp>", "no unit"),
        ("<sosp><><eosp>", "no unit"),
        ("<sosp><-1><eosp>", "no unit"),
        ("<sosp><1000><eosp>", "out of range"),
        ("hello", "no unit"),
    ],
)
def test_a_stream_that_is_none_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        list(read_unit_stream(iter(text), 1000))


@pytest.mark.parametrize(
    "text",
    [
        "<sosp>>",
        "<sosp><",
        "<sosp><<1><eosp>",
        "<sosp><1>><eosp>",
        "<sosp><1><eosp>>",
        ">",
        "<sosp><>",
    ]
    + ["<sosp><\u0663><eosp>", "<sosp><1e3><eosp>", "<sosp><-1><eosp>", "<sosp><1.0><eosp>", "\x00"]
    + ["<sosp><" + "9" * 10_000 + "><eosp>", "<sosp>" * 1000, "x" * 10**6, "<sosp><\ud800><eosp>"],
    ids=lambda text: ascii(text[:20]),
)
def test_no_stream_is_more_than_one_clear_error(text: str) -> None:
    for pieces in ([text], list(text[:2000]), [text[:3], text[3:]]):
        with pytest.raises(UserError, match="unit string") as found:
            list(read_unit_stream(pieces, 100))
        assert len(str(found.value)) < 300
