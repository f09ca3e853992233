"""HuBERT's targets in one voice: which frame of another reading says the same."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.units.teacher import same_moments


def reading(start: float, *lengths: float) -> list[Phone]:
    ends = np.cumsum([start, *lengths])
    return [Phone(a, b, label) for a, b, label in zip(ends, ends[1:], "abcdef", strict=False)]


def test_a_reading_is_its_own() -> None:
    own = reading(0.3, 0.2, 0.1, 0.4)
    assert same_moments(own, own, 60, 60).tolist() == list(range(60))


def test_a_reading_at_half_the_speed() -> None:
    slow, fast = reading(0.0, 0.4, 0.8), reading(0.0, 0.2, 0.4)
    found = same_moments(slow, fast, 60, 30)
    assert np.abs(found - np.arange(60) / 2).max() <= 1 and found.max() <= 29
    assert (np.diff(found) >= 0).all()


def test_phones_meet_whatever_stands_before() -> None:
    own, other = reading(0.1, 0.2, 0.2), reading(0.3, 0.1, 0.4)
    found = same_moments(own, other, 30, 60)
    assert found[14] in (19, 20)  # the border at 0.3 s here is at 0.4 s there
    assert found[0] == 10  # 0.0 s here is as far before the first phone as 0.2 s there
    assert found[29] == pytest.approx(44, abs=1)


def test_other_phones_are_refused() -> None:
    with pytest.raises(ValueError, match="different phones"):
        same_moments(reading(0, 0.1), reading(0, 0.1, 0.1), 10, 10)
