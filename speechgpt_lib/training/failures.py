"""What can go wrong within a step of training, and what a person can do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Optimization


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
        raise UserError(
            f"the batch of step {step + 1} does not fit into memory; "
            f"its last checkpoint is kept: {cures}"
        ) from error


def not_finite(
    phase: str, step: int, work: Path, loss: torch.Tensor, norm: torch.Tensor, rows: list[str]
) -> UserError:
    """The error for a loss or gradient that is not finite; `rows`: those with such a loss."""
    value = f"gradient of {phase} became {norm.item()}"
    if rows or not loss.isfinite():
        value = f"loss of {phase} became {loss.item()}"
    named = f" ({'; '.join(rows)})" if rows else ""
    return UserError(
        f"the {value} at step {step + 1} in {work}{named}; the last good checkpoint is kept. "
        "Lower the learning rate or look at that batch"
    )
