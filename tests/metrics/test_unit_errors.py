"""Unit error rate: what counts as an error, and how utterances are pooled."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.metrics.unit_errors import unit_error_rate, unit_errors, word_errors

units = st.lists(st.integers(0, 4), max_size=9)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ([4, 7, 9], [4, 7, 9], 0),
        ([4, 7, 9], [4, 8, 9], 1),  # substituted
        ([4, 7, 9], [4, 9], 1),  # deleted
        ([4, 7, 9], [4, 7, 5, 9], 1),  # inserted
        ([4, 7], [], 2),
        ([], [4, 7], 2),
        ([], [], 0),
        ([1, 2, 3, 4, 5], [3, 4, 5, 1, 2], 4),
    ],
)
def test_unit_errors(reference, hypothesis, expected):
    assert unit_errors(np.array(reference, dtype=int), np.array(hypothesis, dtype=int)) == expected


def test_pooled_over_units_not_over_utterances():
    assert unit_error_rate([[1], list(range(9))], [[2], list(range(9))]) == pytest.approx(1 / 10)


def test_rates_above_one_and_empty_references():
    assert unit_error_rate([[1]], [[2, 3, 4]]) == 3
    assert unit_error_rate([[]], [[2, 3]]) == 2
    assert unit_error_rate([], []) == 0


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 references, 1 hypotheses"):
        unit_error_rate([[1], [2]], [[1]])


@given(units, units)
def test_it_is_the_textbook_recursion_for_units_and_for_words(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    expected = distance(len(a), len(b))
    assert unit_errors(np.array(a), np.array(b)) == unit_errors(b, a) == expected
    assert word_errors(" ".join(map(str, a)), " ".join(map(str, b)))[0] == expected
