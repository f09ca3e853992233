"""How fast a machine multiplies matrices at best, of which MFU is the share that is reached.

MFU (model FLOP utilisation) = tokens a second × FLOPs a token of the model / peak.  FLOPs count
what the model needs, not what is computed again or for padding (Chowdhery et al. 2022, arXiv
2204.02311, appendix B).  The peak is measured, since the one on the box is reached by nobody.
"""

from __future__ import annotations

import functools
import time

import torch

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


@functools.cache
def matmul_peak(
    device: str = "cpu", precision: str = "no", threads: int | None = None, seconds: float = 0.3
) -> float:
    """FLOP/s of square matrix products in `precision` ("no": fp32), measured once a process.

    It is the best of as many as fit into `seconds`; `threads` only tells apart measurements with
    different numbers of CPU threads.
    """
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        _wait(device)
        before = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
