"""Batches by step number: epochs are planned one by one, a batch depends on its step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


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
