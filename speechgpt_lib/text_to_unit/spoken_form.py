"""Written text → the words that are spoken, as transcripts have them, numbers in words.

Transcripts such as LibriSpeech's are bare words: a model that learned from them has never seen
digits, signs and capitals.  English only: another language needs its own rules.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path

import yaml

from speechgpt_lib.corpora.corpus import plain

LONGEST_NUMBER = 15  # digits; longer ones are read digit by digit
_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_MONEY, _UNITS, _LETTERS, _MORE = map(_WORDS.get, ("money", "units", "letters", "magnitudes"))
_SPELLING = [(re.compile(pattern), other) for pattern, other in _WORDS["spelling"]]
_SIGN, _UNIT = ("|".join(sorted(map(re.escape, of), key=len)[::-1]) for of in (_MONEY, _UNITS))
_N = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+"
_MAGNITUDE = rf"(?:[\s-]?((?i:{'|'.join(_MORE)}|\w+illion|thousand|hundred)\b))?"


def spoken_form(text: str) -> str:
    """`In 1969, 2.5% paid.` → `in nineteen sixty nine two point five percent paid`."""
    letters = "".join(" " if (said := _sound(c)) is None else said for c in in_words(text).lower())
    return " ".join(filter(None, (word.strip("'") for word in letters.split())))


def unsaid(text: str) -> list[str]:
    """The characters that `spoken_form` leaves out since English has no word for them: letters of
    other scripts.  Punctuation is silent, and not among them."""
    return [] if text.isascii() else [c for c in in_words(text).lower() if _sound(c) is None]


def in_words(text: str) -> str:
    """The text with numbers, money, units, times and signs in words; its letters stay."""
    text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.digit(digit[0])), plain(text))
    for pattern, said in _RULES:
        text = re.sub(pattern, said, text)
    return text


def one_spelling(text: str) -> str:
    """The text in small letters and American spelling, to compare what two wrote down: colour and
    grey are color and gray."""
    text = text.lower()
    for pattern, other in _SPELLING:
        text = pattern.sub(other, text)
    return text


@functools.lru_cache(10_000)
def _sound(c: str) -> str | None:
    """A small letter or sign in English letters; None where it has none."""
    kind, name = unicodedata.category(c), unicodedata.name(c, "")
    if c in _LETTERS or c == "'":
        return _LETTERS.get(c, c)
    if found := re.fullmatch(r"LATIN .*LETTER (\w{1,2})(?: WITH .*)?", name):
        return found[1].lower()
    if kind in ("Mn", "Me", "Cf"):  # accents, what joins emoji
        return ""
    if kind[0] == "S" and kind != "Sk":  # emoji and signs go by their names
        name = re.sub(" SIGN$|^REGIONAL INDICATOR SYMBOL LETTER", "", name)
        return f" {re.sub('[^a-z]', ' ', name.lower())} "
    return " " if kind[0] in "ZPS" or kind == "Cc" else None


def _money(found: re.Match) -> str:
    """$1.5 million → one point five million dollars; $2.50 → two dollars and fifty cents."""
    sign, number, more = found.groups("")
    one, many, *cents = _MONEY[sign]
    whole, _, part = number.replace(",", "").partition(".")
    named = one if whole == "1" and not (more or part.strip("0")) else many
    if more or not cents or len(part) != 2:
        return f" {_words(number)} {_MORE.get(more.lower(), more)} {named} "
    said = [f"{_words(whole or '0')} {one if whole == '1' else many}"] * (
        part == "00" or whole > "0"
    )
    said += [f"{_words(part[part[0] == '0' :])} {cents[part != '01']}"] * (part > "00")
    return f" {' and '.join(said)} "


def _measure(found: re.Match) -> str:
    number, power, unit, per = found.groups()
    one, _, more = _UNITS[unit].partition("|")
    one, _, many = one.partition(":")
    said = f"{_words(number)} {power}{one if number == '1' else many or one + 's'}{more}"
    return f" {said} {'per ' + _UNITS[per] if per else ''} "


def _number(found: re.Match) -> str:
    """A number, an ordinal, or several (90s)."""
    said, suffix = _words(found[1]), (found[2] or "").lower()
    if suffix[-1:] == "s" and suffix[0] in "s'":
        return f" {_engine().plural_noun(said)} "
    return f" {_engine().ordinal(said) + suffix[2:] if suffix else said} "


@functools.cache
def _engine():
    import inflect  # takes two seconds, and most text has no digits

    return inflect.engine()


@functools.lru_cache(10_000)
def _words(number: str) -> str:
    number = number.replace(",", "")
    if len(number) > LONGEST_NUMBER or re.match(r"0\d", number):
        return " ".join("point" if d == "." else _engine().number_to_words(d) for d in number)
    return re.sub("[,-]", " ", _engine().number_to_words(number, andword=""))


_RULES = [
    *_WORDS["before"],
    (rf"({_SIGN})\s?({_N}){_MAGNITUDE}", _money),
    (rf"(?<![\w.])({_N})(?!s\b)[\s-]?(square |cubic |)({_UNIT})(?:/({_UNIT}))?(?!\w)", _measure),
    *_WORDS["years"],
    (rf"({_N})((?i:st|nd|rd|ths?)\b|(?<=\d)'?s\b)?", _number),
    (r"(?<![^\W_])[α-ωΑ-Ω](?![^\W_])", lambda c: f" {unicodedata.name(c[0]).split()[-1]} "),
    *((re.escape(sign), f" {word} ") for sign, word in _WORDS["signs"].items()),
]
