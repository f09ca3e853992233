"""Other processes: pools, children that end with us, and interrupts that come at a bad moment."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import format_exc
from typing import Any

import psutil

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import not_through_links

LOOPBACK = "127.0.0.1"  # where processes of one machine meet, whatever its name resolves to
PATIENCE_S = 60.0  # to finish a step and save; torchrun itself kills its workers after 30 s
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def run_in_processes(function, jobs: list, processes: int, fresh: bool = False) -> Iterator:
    """`map(function, jobs)` in other processes (they don't inherit torch's threads), in order.

    With `fresh` every job gets a process of its own, even if there is one job only: eSpeak carries
    state from sentence to sentence, so only what a new process says is repeatable.  Raises
    UserError, which names the job, where a process is lost (the system kills what takes too much
    memory): `multiprocessing.Pool` would wait for its answer for ever.
    """
    if not fresh and (processes <= 1 or len(jobs) <= 1):
        yield from map(function, jobs)
        return
    context, free, started = multiprocessing.get_context("spawn"), [], []

    def do(job: Any) -> Any:
        """In a thread: hand a job to a process that has none, and wait for its answer."""
        try:
            here, process = free.pop()
        except IndexError:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(function, there), daemon=True)
            process.start()
            started.append(process)
            there.close()
        files = [part for part in (job if isinstance(job, tuple) else ()) if isinstance(part, Path)]
        try:
            here.send(job)
            answer, error = here.recv()
        except (EOFError, OSError):
            process.join()
            why = f"exit code {process.exitcode}; -9: killed, most often because memory ran out"
            lost = f"the process that made {files[0] if files else 'a part'} was lost ({why})"
            raise UserError(f"{lost}: the same command goes on after what is finished") from None
        if fresh:
            here.close()  # it ends then
        else:
            free.append((here, process))
        if error:
            raise error
        return answer

    with ThreadPoolExecutor(max(1, min(processes, len(jobs)))) as threads:
        try:
            yield from threads.map(do, jobs)
        finally:  # also at an interrupt, which only this process hears
            threads.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
                process.join()


def _work(function: Callable, there: Connection) -> None:
    """In the other process: do jobs until there is nobody to give any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = there.recv()
            try:
                answer = function(job), None
            except Exception as error:
                error.add_note(format_exc())
                answer = None, error
            there.send(answer)


def loopback_only() -> dict[str, str]:
    """Variables that keep gloo and NCCL on this machine: they, too, would ask for its name."""
    addresses = psutil.net_if_addrs().items()
    names = [name for name, known in addresses if any(a.address == LOOPBACK for a in known)]
    return {f"{library}_SOCKET_IFNAME": name for library in ("GLOO", "NCCL") for name in names[:1]}


def supervise(
    command: list[str],
    say: Callable,
    log: Path,
    meanwhile=lambda: None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run a command in a session of its own that ends when we do; returns its exit code.

    What it prints is said, what it writes to stderr goes to `log`.  `meanwhile` is called again and
    again while it runs, twice a second or so.
    """
    # Else torchrun would set the number of threads and announce it; a worker chooses it itself.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | (variables or {})
    with open(log, "w", opener=not_through_links) as errors, interrupts_later() as allow_them:
        streams = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        session = {"start_new_session": True, "preexec_fn": end_with_parent}
        process = subprocess.Popen(command, env=environment, **streams, **session)
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        try:
            reader.start()
            allow_them()  # there is something to stop now
            while True:
                line = ""
                with contextlib.suppress(queue.Empty):
                    line = lines.get(timeout=0.5)
                if line is None:
                    return process.wait()
                if line:
                    say(line.rstrip())
                meanwhile()
        except BaseException:  # an interrupt above all: whatever takes us away leaves nothing
            stop(process)
            raise
        finally:
            reader.join()
            process.stdout.close()


@contextlib.contextmanager
def interrupts_later() -> Iterator[Callable[[], None]]:
    """Hold an interrupt (SIGINT) back until the block ends or calls the function that it gets.

    Half a start or half an import is worse than a moment's wait.  Python tells interrupts to the
    main thread alone; elsewhere this does nothing.
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


def stop(process: subprocess.Popen) -> None:
    """Ask a launcher to stop, so that workers save; kill it later, or at a second interrupt."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=PATIENCE_S)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers get SIGTERM then: `end_with_parent`
        process.wait()


def end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent is gone, even by SIGKILL."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end_soon() -> None:
    """Ask Python to look for no garbage among all that was imported when this process ends: that
    takes most of a second, and the system takes everything back anyway."""
    atexit.register(gc.freeze)
