"""Keeps sentences out of training by their words: Common Voice has many readers of the same one."""

from __future__ import annotations

import hashlib
import re


def same_words(text: str) -> str:
    """What two spellings of a sentence share: lower-case letters and digits, single blanks."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def is_held_out(text: str, share: float) -> bool:
    """Whether a hash of the words (whatever their case and signs) falls into `share` (0 to 1)."""
    digest = hashlib.sha256(b"held out " + same_words(text).encode()).digest()
    return int.from_bytes(digest[:7], "big") < share * 2**56


def rule(share: float) -> str:
    """Says the rule in words, for the data card."""
    what = "the first 56 bits of SHA-256 of 'held out ' and the words (lower case, no punctuation)"
    return f"{what} are below {share:g} of their range"
