"""The classroom filter: whole words and stems of a list; lists that can't be read."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.classroom import Filter


@pytest.fixture(scope="module")
def shipped() -> Filter:
    return Filter.load()


def of(tmp_path: Path, text: str | bytes) -> Filter:
    path = tmp_path / "words.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Filter.load(path)


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
def test_every_category(shipped: Filter, text: str, reason: str) -> None:
    assert shipped.reason(text) == reason


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
def test_harmless_words(shipped: Filter, text: str) -> None:
    assert shipped.reason(text) is None


def test_shipped_list(shipped: Filter) -> None:
    assert len(shipped.terms) == 6
    terms = [term for found in shipped.terms.values() for term in found]
    assert 120 <= len(terms) <= 180 and len(set(terms)) == len(terms)
    for category, found in shipped.terms.items():
        for term in found:
            assert shipped.reason(f"Well, {term.rstrip('*').upper()}!").startswith(category), term


@given(st.text(st.characters(categories=["L"]), min_size=1))
def test_only_stems_match_the_beginnings_of_words(rest: str) -> None:
    words = Filter.load()
    plural = unicodedata.normalize("NFKC", rest).lower() == "s"  # which is in the list, too
    assert plural or words.reason("idiot" + rest) is None
    assert words.reason("a gambl" + rest).startswith("drugs, alcohol and gambling")


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    own = of(
        tmp_path,
        "\ufeff# Food\r\nCheese\r\nice  cream*\r\n\r\n"
        "# Drink\r\nc++\r\ncheese\r\n# Food\r\nham\r\n",
    )
    assert own.terms == {"food": ("cheese", "ice cream*", "ham"), "drink": ("c++", "cheese")}
    assert own.reason("Two ice-creams!") == "food: ice-creams"
    assert own.reason("nice cream") is None and own.reason("cheeses") is None
    assert own.reason("I like C++.") == "drink: c++"


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "has no terms"),
        ("# a\n\n", "has no terms"),
        ("cheese\n", "txt:1: 'cheese' stands before any category"),
        ("#\ncheese\n", "txt:2: 'cheese' stands before any category"),
        ("# a\n\nch*se\n", r"txt:3: 'ch\*se' is no term"),
        ("# a\n*\n", r"txt:2: '\*' is no term"),
        ("# a\nab*\n", r"txt:2: 'ab\*' is no term"),
        ("# a\nabc**\n", r"is no term: expected words"),
        ("# a\n--\n", "is no term"),
        (b"# a\n\xff\n", r"no word list at .*words.txt \(it is not UTF-8\)"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        of(tmp_path, content)


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no word list at .*absent.txt .No such file"):
        Filter.load(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="no word list"):
        Filter.load(tmp_path)
