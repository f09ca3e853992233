"""Layers compiled by torch (inductor) while a model trains, one compilation for all of them since they are alike.

Only layers: compiled whole, a model takes minutes before its first step, and sharding could not gather its weights layer by layer.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable

from torch import nn

from speechgpt_lib.errors import UserError


def compile_layers(modules: Iterable[nn.Module], undo: bool = False) -> None:
    """Compile (or give back) every element of a `ModuleList` in place; names and weights stay as they are.

    Raises:
        UserError: no C++ compiler here, which torch needs.
    """
    if not undo and not shutil.which("g++") and sys.platform == "linux":
        raise UserError(
            "compile: true needs a C++ compiler (g++), and there is none on this machine; install one or set compile: false"
        )
    for layers in (
        m for module in modules for m in module.modules() if isinstance(m, nn.ModuleList)
    ):
        for layer in layers:
            if undo:
                layer._compiled_call_impl = None  # what nn.Module.compile sets
            else:
                layer.compile(dynamic=True)
