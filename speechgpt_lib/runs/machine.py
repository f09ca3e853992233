"""What machine this is: the figures of a run mean little without its processor."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

VECTOR_EXTENSIONS = "avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 asimd sve bf16".split()


def cpu_facts() -> dict:
    """{name, family, model, extensions} of the processor; family and model are numbers, on x86.

    `extensions`: vector instructions that deep-learning kernels choose by, as Linux names them.
    """
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):  # only Linux has such a file; its first core is enough
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        pairs = (line.partition(":") for line in first.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    family, model = (fields.get(key, "") for key in ("cpu family", "model"))
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "family": int(family) if family.isdigit() else None,
        "model": int(model) if model.isdigit() else None,
        "extensions": [name for name in VECTOR_EXTENSIONS if name in flags],
    }


def usable_cores() -> int:
    """Cores that this process may use: in a batch job or under `taskset` fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
