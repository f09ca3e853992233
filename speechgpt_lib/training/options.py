"""How a training is driven: by which seed, on what, in how many processes, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOptions:
    """What every trainer hands to the loop unchanged; what is learned is in the recipe.

    - `seed`: of the weights at the start, of the batches and of dropout.
    - `device`: "cpu", "cuda" or "mps" (`devices.resolve_device` turns "auto" into one of them).
    - `world_size`: the number of processes this training must have; any other is refused.
    - `on_log`: hears every line of the metrics log.
    """

    seed: int
    device: str = "cpu"
    world_size: int = 1
    on_log: Callable[[dict], None] | None = None
