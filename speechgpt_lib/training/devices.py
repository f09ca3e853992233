"""The device and the precision that "auto" means on this machine."""

from __future__ import annotations

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.machine import cpu_facts

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # what a CPU that computes in it itself has


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


def resolve_precision(precision: str, device: str) -> str:
    """The precision meant by "auto": bf16 where the device computes in it itself, else fp32 ("no").

    A CPU without such instructions emulates bf16, and takes some ten times as long as for fp32.
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        return "bf16" if BF16 & set(cpu_facts()["extensions"]) else "no"
    return "bf16" if device.startswith("cuda") else "no"
