"""Batches of the next steps, read in a thread while this step is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


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
