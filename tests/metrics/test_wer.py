"""Word error rate: what counts as an error, and how utterances are pooled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.metrics.unit_errors import wer, word_errors

texts = st.lists(st.sampled_from("the dog cat is red".split()), max_size=7).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the dog is red", "the dog is red", (0, 4)),
        ("the dog is red", "the cat is red", (1, 4)),  # substituted
        ("the dog is red", "dog is red", (1, 4)),  # deleted
        ("the dog is red", "the big dog is red", (1, 4)),  # inserted
        ("the dog", "", (2, 2)),
        ("", "the dog", (2, 0)),
        ("", "", (0, 0)),
        ("  the   dog\n", "the dog", (0, 2)),
        ("The dog.", "the dog", (2, 2)),  # nothing is normalised behind the caller's back
    ],
)
def test_word_errors(reference, hypothesis, expected):
    assert word_errors(reference, hypothesis) == expected


def test_pooled_over_words_not_over_utterances():
    assert wer(["one", "a b c d e f g h i"], ["two", "a b c d e f g h i"]) == pytest.approx(1 / 10)


def test_empty_texts():
    assert wer([], []) == 0
    assert wer([""], [""]) == 0
    assert wer(["", "a b"], ["c", "a b"]) == pytest.approx(1 / 2)
    assert wer([""], ["a b"]) == 2
    assert wer(["a"], ["a b c"]) == 2


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 references, 1 hypotheses"):
        wer(["a", "b"], ["a"])


@given(texts, texts)
def test_laws_of_edit_distance(a, b):
    errors, words = word_errors(a, b)
    assert words == len(a.split())
    assert (errors == 0) == (a == b)
    assert abs(words - len(b.split())) <= errors <= max(words, len(b.split()))
    assert errors == word_errors(b, a)[0]
