"""How long a step ran, what processor time and how much memory its processes took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil


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


def return_free_memory() -> None:
    """Gives memory that is free inside this process back to the system, where it is glibc."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Monitor:
    """Measures the block it wraps; with a `path`, the next attempt after a kill goes on from there.

    `cpu_seconds` are user and system seconds of the whole process tree, of which the last second of
    a killed one may lack.
    """

    def __init__(self, path: Path | None = None, interval_s: float = 1.0):
        self.path, self.interval_s = path, interval_s
        self._earlier = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mb": 0.0}
        if path is not None and path.exists():
            with contextlib.suppress(ValueError, KeyError):  # half-written by a kill
                saved = json.loads(path.read_text())
                self._earlier = {name: float(saved[name]) for name in self._earlier}
        self.cpu_seconds = self._earlier["cpu_seconds"]
        self.peak_memory_mb = self._earlier["peak_memory_mb"]

    def __enter__(self) -> Monitor:
        self.started, self._cpu_before = time.perf_counter(), tree_cpu_seconds()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._note()

    @property
    def seconds(self) -> float:
        """Wall seconds of this attempt and of the interrupted ones before it."""
        return self._earlier["seconds"] + time.perf_counter() - self.started

    def _sample(self) -> None:
        while not self._stop.is_set():
            self._note()
            self._stop.wait(self.interval_s)

    def _note(self) -> None:
        self.peak_memory_mb = max(self.peak_memory_mb, tree_memory_mb())
        cpu = self._earlier["cpu_seconds"] + tree_cpu_seconds() - self._cpu_before
        self.cpu_seconds = max(self.cpu_seconds, cpu)
        known = {name: getattr(self, name) for name in self._earlier}
        # A full disk must stop the step itself, not its stop-watch.
        with contextlib.suppress(OSError):
            if self.path is not None:
                temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(json.dumps(known))
                os.replace(temporary, self.path)
