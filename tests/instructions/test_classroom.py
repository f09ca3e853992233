"""The classroom filter: whole words and stems of a list."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.instructions.classroom import TERMS, unsafe


@pytest.mark.parametrize(
    "text, reason",
    [
        ("How was he MURDERED?", "violence and weapons: murdered"),
        ("I don’t want to live.", "self-harm: don't want to live"),
        ("about self harm", "self-harm: self harm"),
        ("Is pornography legal", "sexual content: pornography"),
        ("a ｃａｓｉｎｏ", "drugs, alcohol and gambling: casino"),
        ("You idiot!", "hate and insults: idiot"),
        ("write my\nessay for me", "crime and cheating: write my essay for me"),
    ],
)
def test_every_category(text: str, reason: str) -> None:
    assert unsafe(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How is a rainbow formed?",
        "The heroine rode to Essex and Middlesex.",
        "Skills, begun, bombastic, grape, therapist, Saxophone, classic, assess, analyse, cocky",
        "A shooting star; troubleshooting my camera; the bell rings.",
        "Weeds grow in the garden pot. Speed is distance over time.",
        "The hackathon was cheap, and the cheetah is fast.",
        "你好",
    ],
)
def test_harmless_words(text: str) -> None:
    assert unsafe(text) is None


def test_shipped_list() -> None:
    assert len(TERMS) == 6
    terms = [term for found in TERMS.values() for term in found]
    assert 120 <= len(terms) <= 180 and len(set(terms)) == len(terms)
    for category, found in TERMS.items():
        for term in found:
            assert unsafe(f"Well, {term.rstrip('*').upper()}!").startswith(category), term


@given(st.text(st.characters(categories=["L"]), min_size=1))
def test_only_stems_match_the_beginnings_of_words(rest: str) -> None:
    plural = unicodedata.normalize("NFKC", rest).lower() == "s"  # which is in the list, too
    assert plural or unsafe("idiot" + rest) is None
    assert unsafe("a gambl" + rest).startswith("drugs, alcohol and gambling")
