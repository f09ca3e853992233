"""What an exercise is made of: its cases and its reference solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """`reference(*case)` is the right answer for every case in `cases`."""

    cases: tuple[tuple[Any, ...], ...]
    reference: Callable
