"""Batches: items of like length together, found by step number alone, perhaps read beforehand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

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


def shuffled_buckets(lengths: Sequence[int], budget: int, rng: random.Random, padded=None) -> list:
    """The batches of an epoch (item numbers): those of roughly like length together, shuffled.

    `padded` are the lengths that count for the budget, by default `lengths`.
    """
    keys = [length + JITTER * rng.random() for length in lengths]
    order = sorted(range(len(lengths)), key=keys.__getitem__)
    batches = fill_batches(order, padded or lengths, budget)
    rng.shuffle(batches)
    return batches


class Epochs:
    """`plan(epoch, first step)` gives the batches of an epoch, in order; `at(step)` one of them.

    Steps are asked for in order, as a rule; going back plans from the start, with the same result.
    """

    def __init__(self, plan: Callable[[int, int], Sequence]):
        self.plan = plan
        self._epoch, self._first, self.batches = -1, 0, []

    def at(self, step: int) -> Any:
        """The batch of this step."""
        if step < self._first:
            self._epoch, self._first, self.batches = -1, 0, []
        while step >= self._first + len(self.batches):
            self._first += len(self.batches)
            self._epoch += 1
            self.batches = self.plan(self._epoch, self._first)
        return self.batches[step - self._first]


class Prefetched:
    """`batch_at` of a `Task`, with the batches of the next `ahead` steps made beforehand.

    Since a batch is a function of its step, rank and the number of processes alone, nothing changes
    but the time it takes.  An error while a batch is read is raised when that batch is asked for.
    """

    def __init__(self, batch_at: Callable[[int, int, int], Any], ahead: int = 2):
        self._batch_at, self._ahead = batch_at, ahead
        self._reader = ThreadPoolExecutor(1, "batches")
        self._coming: dict[tuple[int, int, int], Future] = {}

    def __call__(self, step: int, rank: int, world_size: int) -> Any:
        """The batch of this step; the next ones are read from now on."""
        for later in range(step, step + self._ahead + 1):
            key = (later, rank, world_size)
            if key not in self._coming:
                self._coming[key] = self._reader.submit(self._batch_at, *key)
        self._coming = {key: future for key, future in self._coming.items() if key[0] >= step}
        return self._coming.pop((step, rank, world_size)).result()
