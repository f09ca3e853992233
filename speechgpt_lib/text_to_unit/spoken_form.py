"""Written text → the words that are spoken, as transcripts have them, numbers in words.

Transcripts such as LibriSpeech's are bare words: a model that learned from them has never seen
digits, signs and capitals.  English only: another language needs its own rules.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_SIGNS = "% percent & and + plus = equals @ at $ dollars € euros £ pounds".split()
SIGNS = {sign: f" {word} " for sign, word in zip(_SIGNS[::2], _SIGNS[1::2], strict=True)}
_MONEY = re.compile(r"([$€£])\s?(\d[\d,]*(?:\.\d+)?)")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th)?\b|\d+")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'"})
LONGEST_NUMBER = 15  # digits; longer ones are read digit by digit


def spoken_form(text: str) -> str:
    """`In 1969, 2.5% paid.` → `in nineteen sixty nine two point five percent paid`."""
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    text = _MONEY.sub(lambda found: f"{found[2]}{SIGNS[found[1]]}", text)
    text = _NUMBER.sub(lambda found: f" {_number(found[0])} ", text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    letters = unicodedata.normalize("NFKD", text.lower())
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    words = (word.strip("'") for word in re.sub(r"[^a-z' ]+", " ", letters).split())
    return " ".join(word for word in words if word)


def _number(written: str) -> str:
    digits = written.replace(",", "")
    if digits[-2:] in ("st", "nd", "rd", "th"):
        return _engine().ordinal(_words(digits[:-2]))
    if re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", written):  # a year, most likely
        century, years = _words(written[:2]), written[2:]
        if years == "00":
            return f"{century} hundred"
        return f"{century} {'oh ' if years[0] == '0' else ''}{_words(years.lstrip('0'))}"
    return _words(digits)


@functools.cache
def _engine():
    import inflect  # takes two seconds, and most text has no digits

    return inflect.engine()


def _words(digits: str) -> str:
    if len(digits) > LONGEST_NUMBER or (len(digits) > 1 and digits[0] == "0" and "." not in digits):
        return " ".join(_engine().number_to_words(digit) for digit in digits if digit.isdigit())
    return _engine().number_to_words(digits, andword="").replace(",", "")
