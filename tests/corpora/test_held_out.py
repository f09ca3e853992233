"""The rule that keeps sentences out of training looks at their words alone."""

from __future__ import annotations

import pytest

from speechgpt_lib.corpora.held_out import is_held_out, rule, same_words


def test_spelling_makes_no_difference() -> None:
    assert (
        same_words("  It's—RED,  isn't it?")
        == same_words("it s red isn t it")
        == "it s red isn t it"
    )
    for text in ("What is red?", "the box is open", "Ça va"):
        assert is_held_out(text, 0.5) == is_held_out(f" {text.upper()}!", 0.5)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.1, 1.0])
def test_the_share_is_met(share: float) -> None:
    found = sum(is_held_out(f"sentence {k}", share) for k in range(20_000)) / 20_000
    assert found == pytest.approx(share, abs=0.007)


def test_a_larger_share_keeps_what_a_smaller_one_held_out() -> None:
    texts = [f"sentence {k}" for k in range(2000)]
    assert {t for t in texts if is_held_out(t, 0.1)} < {t for t in texts if is_held_out(t, 0.2)}


def test_the_rule_in_words_names_the_share() -> None:
    assert rule(0.002).endswith("are below 0.002 of their range")
