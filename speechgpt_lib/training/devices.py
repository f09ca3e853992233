"""The device that "auto" means on this machine."""

from __future__ import annotations

import torch

from speechgpt_lib.errors import UserError


def resolve_device(device: str) -> str:
    """The device meant by "auto": the first of CUDA, Apple's MPS and the CPU that is there.  Others must be there."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, is_there in present.items() if is_there)
    if not present[device]:
        there = [name for name, is_there in present.items() if is_there]
        raise UserError(
            f'device "{device}" is not available here; this machine has {", ".join(there)}; choose one or "auto"'
        )
    return device
