"""Written text as it is spoken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.text_to_unit.spoken_form import spoken_form


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("In 1969, 2.5% paid", "in nineteen sixty nine two point five percent paid"),
        ("for $30.", "for thirty dollars"),
        ("It’s 1,234 cats & dogs!", "it's one thousand two hundred thirty four cats and dogs"),
        ("the 21st; 1905, 1900", "the twenty first nineteen oh five nineteen hundred"),
        ("2007 and 2015", "two thousand seven and twenty fifteen"),
        ("agent 007 – “naïve” café", "agent zero zero seven naive cafe"),
        ("12345678901234567890", "one two three four five six seven eight nine zero " * 2),
        ("'quoted' rock'n'roll", "quoted rock'n'roll"),
        ("THE OLD MAN", "the old man"),
        ("  ?! ", ""),
        ("犬", ""),
    ],
)
def test_examples(written: str, spoken: str) -> None:
    assert spoken_form(written) == spoken.strip()


@given(st.text(max_size=80))
def test_only_words_are_left_and_they_stay(text: str) -> None:
    spoken = spoken_form(text)
    assert set(spoken) <= set("abcdefghijklmnopqrstuvwxyz' ")
    assert spoken == " ".join(spoken.split()) == spoken_form(spoken)
