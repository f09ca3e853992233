"""Which sentences are kept out of training: a rule on the words alone, so that no sentence can stand on both sides.

Corpora repeat sentences (Common Voice has thousands of readers for one), so a split by utterance would leak.
"""

from __future__ import annotations

import hashlib
import re

_NO_WORD = re.compile(r"[\W_]+")


def same_words(text: str) -> str:
    """What two spellings of one sentence share: letters and digits in lower case, one blank between words."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def is_held_out(text: str, share: float) -> bool:
    """Whether a hash of the words falls into `share` (0 to 1): independent of order, sharding, case and punctuation."""
    digest = hashlib.sha256(b"held out " + same_words(text).encode()).digest()
    return int.from_bytes(digest[:7], "big") < share * 2**56


def rule(share: float) -> str:
    """The rule in words, for the data card."""
    return f"the first 56 bits of SHA-256 of 'held out ' and the words (lower case, no punctuation) are below {share:g} of their range"
