"""Length bucketing: every item once, within the budget, neighbours of like length."""

from __future__ import annotations

import itertools
import random

from hypothesis import example, given
from hypothesis import strategies as st

from speechgpt_lib.training.batches import JITTER, fill_batches, shuffled_buckets

LENGTHS = st.lists(st.integers(1, 80), min_size=1)


@given(LENGTHS, st.integers(1, 300), st.integers())
def test_batches_hold_every_item_once_within_the_budget(lengths, budget, seed) -> None:
    batches = shuffled_buckets(lengths, budget, random.Random(seed))
    assert sorted(k for batch in batches for k in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[k] for k in batch) * len(batch) <= budget
    assert batches == shuffled_buckets(lengths, budget, random.Random(seed))


@given(LENGTHS, st.integers(1, 300))
@example([*[1] * 22, 8, 1, 32, *[7] * 6, 59, 6, 1, 7, 1, 1, 11, 55, 60, 63, 67, 2, 60, 62], 264)
def test_items_of_like_length_are_neighbours(lengths, budget) -> None:
    batches = shuffled_buckets(lengths, budget, random.Random(0))
    spans = [(min(lengths[k] for k in b), max(lengths[k] for k in b)) for b in batches]
    for (shortest, longest), (low, high) in itertools.combinations(spans, 2):
        assert longest <= low + JITTER or high <= shortest + JITTER


def test_batches_are_filled_in_the_given_order() -> None:
    assert fill_batches([], [], 10) == []
    assert fill_batches([2, 0, 1, 3], [5, 12, 2, 3], 10) == [[2, 0], [1], [3]]
    assert fill_batches(range(4), [3, 3, 3, 1], 9) == [[0, 1, 2], [3]]


def test_the_padded_length_counts() -> None:
    lengths = [15, 14, 13, 12]
    assert sorted(map(len, shuffled_buckets(lengths, 32, random.Random(1), [16] * 4))) == [2, 2]
    assert len(shuffled_buckets(lengths, 32, random.Random(1), [32] * 4)) == 4
