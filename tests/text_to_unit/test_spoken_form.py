"""Written text as it is spoken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_lib.corpora.lab import all_answers
from speechgpt_lib.corpora.world import normalise, vocabulary
from speechgpt_lib.text_to_unit.spoken_form import in_words, spoken_form, unsaid


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


@settings(deadline=None)  # the first number loads inflect
@given(st.text(max_size=80))
def test_only_words_are_left_and_they_stay(text: str) -> None:
    spoken = spoken_form(text)
    assert set(spoken) <= set("abcdefghijklmnopqrstuvwxyz' ")
    assert spoken == " ".join(spoken.split()) == spoken_form(spoken)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$1.5 million and €2bn", "one point five million dollars and two billion euros"),
        ("$1, $2.50, £0.99", "one dollar two dollars and fifty cents ninety nine pence"),
        ("$.00 $.05 $1.00", "zero dollars five cents one dollar"),
        ("№ 7, No. 8, #9", "number seven number eight number nine"),
        ("-$5, 5 €, ¥500", "minus five dollars five euros five hundred yen"),
        ("$5-10 million; $1 million", "five to ten million dollars one million dollars"),
        ("the 1990s, '80s, 1900s", "the nineteen nineties eighties nineteen hundreds"),
        (
            "1990–1995, 1914–18",
            "nineteen ninety to nineteen ninety five nineteen fourteen to eighteen",
        ),
        ("1/2, 3/4, 2½, 24/7", "one half three quarters two and a half twenty four seven"),
        ("3:30 pm, 7:00, 10:05", "three thirty p m seven o'clock ten oh five"),
        ("9:00-17:00", "nine o'clock to seventeen hundred"),
        ("10-20 km, 5%", "ten to twenty kilometers five percent"),
        ("1 km at 60 km/h", "one kilometer at sixty kilometers per hour"),
        ("-5 °C, 5 m², 10 ms", "minus five degrees celsius five square meters ten milliseconds"),
        ("1,2,3 and 1,000th", "one two three and one thousandth"),
        (
            ".5 of 10⁹, 1e-5",
            "point five of ten to the power of nine one times ten to the power of minus five",
        ),
        ("v1.2.3, 555-1234", "v one point two point three five five five one two three four"),
        ("3 × 4 = 12, ≥5", "three times four equals twelve greater than or equal to five"),
        ("Łódź, Øresund, Đà Nẵng", "lodz oresund da nang"),
        ("æther, straße, Þór", "aether strasse thor"),
        ("good 😀👍🏽 🇺🇸", "good grinning face thumbs up u s"),
        ("β-carotene, π", "beta carotene pi"),
        ("٣ cats, １２ dogs", "three cats twelve dogs"),
        ("Dr. Who vs. Mr. T", "doctor who versus mister t"),
    ],
)
def test_numbers_signs_and_letters_are_said_as_people_say_them(written: str, spoken: str) -> None:
    assert spoken_form(written) == spoken
    assert unsaid(written) == []


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("犬 dog", "犬"),
        ("Москва", "москва"),
        ("Tōkyō 東京!", "東京"),
        ("caf\udce9", "\udce9"),
        ("ok…", ""),
    ],
)
def test_what_no_english_word_says_is_known(text: str, lost: str) -> None:
    assert "".join(unsaid(text)) == lost


@given(st.text(max_size=40))
def test_every_letter_is_said_or_known_as_lost(text: str) -> None:
    if any(c.isalpha() and c != "ʼ" for c in text):  # which is an apostrophe
        assert spoken_form(text) or unsaid(text)


def test_the_words_of_the_lab_stay() -> None:
    """In the lab's own figures nothing changes: its texts are in words already."""
    for text in (*vocabulary(), *all_answers()):
        assert normalise(in_words(text)) == text
