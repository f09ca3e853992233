"""The device that "auto" means on this machine."""

from __future__ import annotations

import torch

from speechgpt_lib.errors import UserError


def resolve_device(device: str) -> str:
    """The device meant by "auto": the first of CUDA, Apple's MPS and the CPU that is there.

    Raises UserError when another one is asked for and not there.
    """
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    there.append("cpu")
    if device not in ("auto", *there):
        raise UserError(
            f'device "{device}" is not available here; this machine has {", ".join(there)}: '
            'choose one or "auto"'
        )
    return there[0] if device == "auto" else device
