"""Other processes: pools, children that end with us, and interrupts that come at a bad moment."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

LOOK_S = 0.5  # between two calls of `meanwhile`
PATIENCE_S = (
    60.0  # to finish the current step and save; torchrun itself kills its workers after 30 s
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def run_in_processes(function, jobs: list, processes: int, fresh: bool = False) -> Iterator:
    """`map(function, jobs)` in other processes (they don't inherit torch's threads), results in
    order.

    With `fresh` every job gets a process of its own, even if there is one job only: eSpeak carries
    state from sentence to sentence, so only what a new process says is repeatable.
    """
    if not fresh and (processes <= 1 or len(jobs) <= 1):
        yield from map(function, jobs)
        return
    workers = max(1, min(processes, len(jobs)))
    context = multiprocessing.get_context("spawn")
    with context.Pool(
        workers, initializer=_ignore_interrupt, maxtasksperchild=1 if fresh else None
    ) as pool:
        yield from pool.imap(function, jobs)


def _ignore_interrupt() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool


def supervise(
    command: list[str],
    say: Callable[[str], None],
    log: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Run a command in a session of its own that ends when we do; say what it prints, and return
    its exit code.

    `meanwhile` is called again and again while it runs, twice a second or so.
    """
    environment = {
        "OMP_NUM_THREADS": "1"
    } | os.environ  # torchrun would set and announce it; a worker chooses its threads itself
    with open(log, "w") as errors, interrupts_later() as allow_them:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        try:
            reader.start()
            allow_them()  # there is something to stop now
            while (line := _next(lines)) is not None:
                if line:
                    say(line.rstrip())
                meanwhile()
            return process.wait()
        except (
            BaseException
        ):  # an interrupt above all: whatever takes us away, nothing is left behind
            stop(process)
            raise
        finally:
            reader.join()
            process.stdout.close()


@contextlib.contextmanager
def interrupts_later() -> Iterator[Callable[[], None]]:
    """Hold an interrupt (SIGINT) back until the block ends, or until the function that it gives is
    called: half a start or half an import is worse than a moment's wait.  Python tells interrupts
    to the main thread alone; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came, before = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *signal_and_frame: came.append(signal_and_frame))

    def allow_them() -> None:
        signal.signal(signal.SIGINT, before)
        if came:
            came.clear()
            signal.raise_signal(signal.SIGINT)

    try:
        yield allow_them
    finally:
        allow_them()


def _read(stream: IO[str], lines: queue.SimpleQueue) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.SimpleQueue) -> str | None:
    """The next line, "" when none comes for a while, None at the end."""
    try:
        return lines.get(timeout=LOOK_S)
    except queue.Empty:
        return ""


def stop(process: subprocess.Popen) -> None:
    """Ask the launcher to stop, which lets its workers save; kill it when that takes too long or a
    second interrupt comes."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=PATIENCE_S)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid, signal.SIGKILL
            )  # its workers get SIGTERM by this: see end_with_parent
        process.wait()


def end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent is gone, even by SIGKILL."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
