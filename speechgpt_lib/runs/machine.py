"""What machine this is: the figures of a run mean little without its processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path

VECTOR_EXTENSIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)


def cpu_facts() -> dict:
    """{name, family, model, extensions} of the processor; family and model are numbers on x86, None
    elsewhere.

    `extensions` are the vector instructions that deep-learning kernels choose by, as Linux names
    them.
    """
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    number = {
        key: int(fields[key]) if fields.get(key, "").isdigit() else None
        for key in ("cpu family", "model")
    }
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "family": number["cpu family"],
        "model": number["model"],
        "extensions": [name for name in VECTOR_EXTENSIONS if name in flags],
    }


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has in a batch job or under
    `taskset`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The fields of the first core in /proc/cpuinfo; empty where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
