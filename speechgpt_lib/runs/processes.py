"""Other processes: pools, children that end with us, and interrupts that come at a bad moment."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from traceback import format_exception
from typing import Any

from speechgpt_lib.errors import UserError, out_of_memory

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
    context, at_once = multiprocessing.get_context("spawn"), max(1, min(processes, len(jobs)))
    todo, answers = deque(enumerate(jobs)), {}
    free: list[tuple[Connection, BaseProcess]] = []
    busy: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        for number in range(len(jobs)):
            while number not in answers:
                while todo and len(busy) < at_once:
                    here, process = free.pop() if free else _start(context, function)
                    job, given = todo.popleft()
                    busy[here] = job, process
                    with contextlib.suppress(OSError):  # a lost one is noticed when it is heard
                        here.send(given)
                for here in multiprocessing.connection.wait(list(busy)):
                    job, process = busy[here]
                    answers[job] = _hear(here, process, jobs[job], f"job {job + 1} of {len(jobs)}")
                    del busy[here]
                    if fresh:
                        here.close()
                        process.join()
                    else:
                        free.append((here, process))
            yield answers.pop(number)
    finally:  # also at an interrupt, which only this process hears
        for here, process in [*free, *((here, process) for here, (_, process) in busy.items())]:
            process.terminate()
            process.join()
            here.close()


def _start(context, function) -> tuple[Connection, BaseProcess]:
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(function, there), daemon=True)
    process.start()
    there.close()
    return here, process


def _work(function, there: Connection) -> None:
    """In the other process: do jobs until there is nobody to give any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends this
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = there.recv()
            try:
                answer = function(job), None
            except Exception as error:
                error.add_note("".join(format_exception(error)))
                answer = None, error
                try:
                    pickle.loads(pickle.dumps(error))
                except Exception:  # its class can't be made from its words alone
                    answer = None, RuntimeError("".join(format_exception(error)))
            there.send(answer)


def _hear(here: Connection, process: BaseProcess, job: object, name: str) -> Any:
    """The answer to a job, which `name` names where no file of it does."""
    parts = job if isinstance(job, tuple) else (job,)
    name = next((str(part) for part in parts if isinstance(part, Path)), name)
    try:
        answer, error = here.recv()
    except (EOFError, OSError):
        process.join()
        why = f"exit code {process.exitcode}; -9: killed, most often because memory ran out"
        cure = "what is finished is kept; the same command goes on after it"
        raise UserError(f"the process that made {name} was lost ({why}): {cure}") from None
    if error and out_of_memory(error):
        raise UserError(f"memory ran out where {name} was made: take fewer at once") from error
    if error:
        raise error
    return answer


def supervise(command: list[str], say: Callable, log: Path, meanwhile=lambda: None) -> int:
    """Run a command in a session of its own that ends when we do; returns its exit code.

    What it prints is said, what it writes to stderr goes to `log`.  `meanwhile` is called again and
    again while it runs, twice a second or so.
    """
    # Else torchrun would set the number of threads and announce it; a worker chooses it itself.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with open(log, "w") as errors, interrupts_later() as allow_them:
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
