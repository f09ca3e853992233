"""Draws that depend on a seed alone, so that every machine makes the same ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence


def rank(text: str, seed: int = 0) -> bytes:
    """A place in a random order, which depends on the text and the seed alone."""
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def shuffled(items: Sequence, seed: int) -> list:
    """The items in an order drawn from `seed`; the same items and seed give the same order."""
    return random.Random(seed).sample(items, len(items))
