"""What machine this is, and what a step takes of it: time, processor time and memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import read_json, write_json

VECTOR_EXTENSIONS = "avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 asimd sve bf16".split()
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of glibc's mallopt
FIGURES = ("seconds", "cpu_seconds", "peak_memory_mb")  # what a `Monitor` measures


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


def granted_memory() -> int:
    """This machine's memory in bytes, or less where a container or batch job is granted less (Linux
    control groups v2)."""
    limits = [psutil.virtual_memory().total]
    with contextlib.suppress(OSError):  # no Linux, or not allowed to look
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        group = Path("/sys/fs/cgroup") / own.lstrip("/")
        # A limit on any level above binds as well.
        for folder in [group, *group.parents]:
            limit = folder / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                limits.append(int(text))
    return min(limits)


def free_memory(device: str = "cpu") -> int:
    """Bytes that are left on a device: "cpu", "mps", or a GPU such as "cuda:1"."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    own = psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, granted_memory() - own)


def _of_tree(figure: Callable[[psutil.Process], float]) -> float:
    """The sum of a figure of this process and of all living ones below it."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += figure(process)
    return total


def tree_memory_mb() -> float:
    """Memory of this process and all below it in MiB: PSS where the system tells it, else RSS."""

    def own(process: psutil.Process) -> int:
        memory = process.memory_full_info()
        return getattr(memory, "pss", 0) or memory.rss  # PSS counts shared pages once

    return _of_tree(own) / 2**20


def tree_cpu_seconds() -> float:
    """User and system seconds of living processes and of their children that ended."""
    return _of_tree(lambda process: sum(process.cpu_times()[:4]))


def return_free_memory(collect: bool = True) -> None:
    """Gives memory that is free inside this process back to the system, where it is glibc.

    `collect` looks for garbage before, which takes a moment.
    """
    if collect:
        gc.collect()
    if arrow := sys.modules.get("pyarrow"):  # its own allocator keeps what tables took
        arrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Inside the block, memory that is freed stays with this process, for what is computed next,
    where it is glibc; afterwards it is given back.

    Else every tensor of some 10 MB comes fresh from the system, page by page, which takes a sixth
    of the time where such tensors come and go.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield
        return
    for kind, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(kind, value)
    try:
        yield
    finally:  # the thresholds that glibc would have come to by itself
        for kind, value in ((MMAP_MAX, 65_536), (MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**26)):
            mallopt(kind, value)
        return_free_memory(collect=False)


class Monitor:
    """Measures the block it wraps; what `path` keeps of an attempt that was killed counts on.

    `cpu_seconds` are those of the whole process tree; of a killed one the last may lack.
    """

    def __init__(self, path: Path, interval_s: float = 1.0):
        self.path, self.interval_s = path, interval_s
        self.seconds = self.cpu_seconds = self.peak_memory_mb = 0.0
        with contextlib.suppress(UserError), reading(path):  # none, or damaged
            saved = read_json(path)
            found = [float(saved[name]) for name in FIGURES]
            if all(0 <= figure < math.inf for figure in found):
                self.seconds, self.cpu_seconds, self.peak_memory_mb = found

    def __enter__(self) -> Monitor:
        self._begun = time.perf_counter() - self.seconds
        self._cpu_begun = tree_cpu_seconds() - self.cpu_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._note()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self._note()
            self._stop.wait(self.interval_s)

    def _note(self) -> None:
        self.seconds = time.perf_counter() - self._begun
        self.cpu_seconds = max(self.cpu_seconds, tree_cpu_seconds() - self._cpu_begun)
        self.peak_memory_mb = max(self.peak_memory_mb, tree_memory_mb())
        known = {name: getattr(self, name) for name in FIGURES}
        with contextlib.suppress(OSError, UserError):  # a full disk must not stop the stop-watch
            write_json(self.path, known)
