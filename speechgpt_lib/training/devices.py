"""What "auto" means on this machine, how fast it multiplies at best, and layers compiled for it."""

from __future__ import annotations

import functools
import math
import shutil
import sys
import time
from collections.abc import Iterable

import torch
from torch import nn

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
        found = f"this machine has {', '.join(there)}"
        raise UserError(f'device "{device}" is not available here; {found}: choose one or "auto"')
    return there[0] if device == "auto" else device


def resolve_precision(precision: str, device: str) -> str:
    """The precision meant by "auto": bf16 where the device gains by it, else fp32 ("no").

    A CPU must have instructions for it, and be faster with them: one without emulates bf16, and
    takes ten to a hundred times as long as for fp32.
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        gains = bool(BF16 & set(cpu_facts()["extensions"])) and bf16_gain() > 1
    else:
        gains = device.startswith("cuda")
    return "bf16" if gains else "no"


@functools.cache
def bf16_gain() -> float:
    """How many times as fast as in fp32 this CPU multiplies matrices in bf16: the best of six
    products of each kind in turn, measured once a process."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in [*seconds] * 6:
        a = torch.ones(512, 512, dtype=dtype)
        started = time.perf_counter()
        torch.mm(a, a)
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.float32] / seconds[torch.bfloat16]


@functools.cache
def matmul_peak(device="cpu", precision="no", threads=0, seconds=0.3) -> float:
    """FLOP/s of square matrix products in `precision` ("no": fp32), measured once a process.

    It is the best of as many as fit into `seconds` (the peak on the box is reached by nobody);
    `threads` (of a CPU) only tells apart measurements.  MFU is the share of it that a training
    reaches, where FLOPs count what the model needs, not what is computed again or for padding
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    """
    size, dtype = 1024 if device == "cpu" else 8192, {"no": torch.float32, "bf16": torch.bfloat16}
    a, b = (torch.randn(size, size, device=device).to(dtype[precision]) for _ in range(2))
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    best, started = math.inf, time.perf_counter()
    while time.perf_counter() - started < seconds:
        wait()
        before = time.perf_counter()
        torch.mm(a, b)
        wait()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def resolve_compile(setting: bool | str) -> bool:
    """What `compile: auto` means here; UserError for `true` where there is no C++ compiler."""
    found = bool(shutil.which("g++")) or sys.platform != "linux"
    if setting is True and not found:
        what = "compile: true needs a C++ compiler, and there is no g++ on this machine"
        raise UserError(f"{what}: install one or set compile: false")
    return found if setting == "auto" else setting


def compile_layers(modules: Iterable[nn.Module], undo: bool = False) -> None:
    """Let torch compile (or give back) all elements of `ModuleList`s in place; names stay.

    Layers are alike, so that is done once for all; compiled whole, a model takes minutes before its
    first step, and sharding could not gather its weights layer by layer.
    """
    import torch._inductor.config

    # Its pool of compiling processes would take more memory than a small model, and saves little.
    torch._inductor.config.compile_threads = 1
    lists = [m for module in modules for m in module.modules() if isinstance(m, nn.ModuleList)]
    for layer in (layer for layers in lists for layer in layers):
        if undo:
            layer._compiled_call_impl = None  # what nn.Module.compile sets
        else:
            layer.compile(dynamic=True)
