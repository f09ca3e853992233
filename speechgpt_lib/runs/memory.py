"""How long a step ran, what processor time and how much memory its process tree took: sampled by a
thread, kept on disk."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import threading
import time
from pathlib import Path

import psutil


def tree_memory_mb(process: psutil.Process | None = None) -> float:
    """Memory of a process and all its descendants in MiB: PSS where the system tells it (shared
    pages counted once), else RSS."""
    process = process or psutil.Process()
    total = 0
    with contextlib.suppress(psutil.Error):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += _pss(member.pid) or member.memory_info().rss
    return total / 2**20


def _pss(pid: int) -> int:
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open(f"/proc/{pid}/smaps_rollup") as file,
    ):
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def tree_cpu_seconds(process: psutil.Process | None = None) -> dict[int, float]:
    """Process id → user and system seconds of each living process of a tree, with those of its
    children that ended."""
    process, found = process or psutil.Process(), {}
    with contextlib.suppress(psutil.Error):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                found[member.pid] = sum(
                    member.cpu_times()[:4]
                )  # own and children's, user and system
    return found


def return_free_memory() -> None:
    """Gives memory that is free inside this process back to the system (glibc), which else keeps
    what a training took."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Monitor:
    """Measures the block it wraps; with a `path`, what it knows survives a kill and is continued by
    the next attempt.

    `cpu_seconds` are user and system seconds of the whole process tree, of which the last second of
    a killed one may lack.
    """

    def __init__(self, path: Path | None = None, interval_s: float = 1.0):
        self.path, self.interval_s = path, interval_s
        self.peak_memory_mb = self.cpu_seconds = 0.0
        self._earlier = {"seconds": 0.0, "cpu_seconds": 0.0}
        if path is not None and path.exists():
            with contextlib.suppress(
                ValueError, KeyError
            ):  # half-written by a kill: measure afresh
                saved = json.loads(path.read_text())
                self._earlier = {name: float(saved[name]) for name in self._earlier}
                self.peak_memory_mb = float(saved["peak_memory_mb"])

    def __enter__(self) -> Monitor:
        self.started = time.perf_counter()
        self._at_start = tree_cpu_seconds()
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
        now = sum(tree_cpu_seconds().values()) - sum(self._at_start.values())
        self.cpu_seconds = max(self.cpu_seconds, self._earlier["cpu_seconds"] + now)
        if self.path is not None:
            known = {
                name: getattr(self, name) for name in ("seconds", "cpu_seconds", "peak_memory_mb")
            }
            with contextlib.suppress(
                OSError
            ):  # a full disk must stop the step itself, not its stop-watch
                temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(json.dumps(known))
                os.replace(temporary, self.path)
