"""Layers compiled by torch (inductor) while a model trains, once for all since they are alike.

Only layers: compiled whole, a model takes minutes before its first step, and sharding could not
gather its weights layer by layer.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable

from torch import nn

from speechgpt_lib.errors import UserError


def resolve_compile(setting: bool | str) -> bool:
    """What `compile: auto` means here; UserError for `true` where there is no C++ compiler."""
    found = bool(shutil.which("g++")) or sys.platform != "linux"
    if setting is True and not found:
        what = "compile: true needs a C++ compiler, and there is no g++ on this machine"
        raise UserError(f"{what}: install one or set compile: false")
    return found if setting == "auto" else setting


def compile_layers(modules: Iterable[nn.Module], undo: bool = False) -> None:
    """Compile (or give back) every element of a `ModuleList` in place; names and weights stay."""
    import torch._inductor.config

    # Its pool of compiling processes would take more memory than a small model, and saves little.
    torch._inductor.config.compile_threads = 1
    lists = [m for module in modules for m in module.modules() if isinstance(m, nn.ModuleList)]
    for layer in (layer for layers in lists for layer in layers):
        if undo:
            layer._compiled_call_impl = None  # what nn.Module.compile sets
        else:
            layer.compile(dynamic=True)
