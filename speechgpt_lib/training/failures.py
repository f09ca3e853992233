"""What ends a training early: a signal, which is answered after a step, or a batch too large."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Optimization


@contextlib.contextmanager
def stop_requests() -> Iterator[list]:
    """A list that is empty until SIGTERM, SIGINT or SIGUSR1 come: the loop looks after its step."""
    came, before = [], {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def memory_explained(step: int, settings: Optimization) -> Iterator[None]:
    """Explains an out-of-memory error, which on a CPU has no class of its own."""
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        cures = "lower tokens_per_batch, or raise accumulation; set checkpointing: true"
        if settings.sharding == "none":
            cures += "; set sharding: full and take more processes"
        what = f"the batch of step {step + 1} does not fit into memory; its last checkpoint is kept"
        raise UserError(f"{what}: {cures}") from error
