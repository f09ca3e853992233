"""Length bucketing: items of like length share a batch, so that little of it is padding."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

JITTER = 6  # how much longer an item may seem than it is, so that its neighbours change by epoch


def fill_batches(order: Iterable[int], lengths: Sequence[float], budget: float) -> list[list[int]]:
    """Item numbers, taken in `order`, in batches whose padded size stays within `budget`.

    The padded size is the length of the longest item times their number.  An item longer than the
    budget is alone in its batch.
    """
    batches: list[list[int]] = []
    longest = 0.0
    for k in order:
        longest = max(longest, lengths[k])
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = lengths[k]
        batches[-1].append(k)
    return batches


def shuffled_buckets(
    lengths: Sequence[int], budget: int, rng: random.Random, padded: Sequence[int] | None = None
) -> list[list[int]]:
    """The batches of an epoch: items of roughly like length together, the batches shuffled.

    `padded` are the lengths that count for the budget, by default `lengths`.
    """
    keys = [length + JITTER * rng.random() for length in lengths]
    order = sorted(range(len(lengths)), key=keys.__getitem__)
    batches = fill_batches(order, padded or lengths, budget)
    rng.shuffle(batches)
    return batches
