"""Steps in processes of their own: each begins as a copy of one that has the libraries already, and
gives all its memory back when it ends.  The process that asks for them never loads torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from speechgpt_lib.errors import UserError, one_line, out_of_memory
from speechgpt_lib.runs.artefacts import not_through_links
from speechgpt_lib.runs.processes import end_with_parent
from speechgpt_lib.runs.run import Run

PATIENCE_S = 20.0  # for a step that was asked to stop
# Imported once for all steps; those of models are imported elsewhere only where they are used.
LIBRARIES = ["speechgpt_lib.pipeline.graph", "transformers.models.hubert.modeling_hubert"]
LIBRARIES += [f"transformers.models.{name}.modeling_{name}" for name in ("llama", "pegasus")]


class StepProcesses:
    """Makes steps of a run in other processes; any number of threads may call `make`.

    `log` takes what they print.  On a CPU they are forked from one process, which never computes
    and imports `more` for others that are `copies` of it; a GPU can't be used after a fork, so
    there each starts anew, and so it does where temporary files have paths too long for a socket.
    """

    def __init__(self, run: Path, log: Path, device: str = "cpu", more: Sequence[str] = ()):
        self.run, self.log = run, log
        # The system limits a socket's path to some 104 bytes: with 32 of Python's own.
        short = len(os.fsencode(tempfile.gettempdir())) <= 70
        forks = device == "cpu" and short
        self.context = multiprocessing.get_context("forkserver" if forks else "spawn")
        self.copies = self.context if forks else None
        if self.copies:
            self.copies.set_forkserver_preload([*LIBRARIES, *more, "speechgpt_lib.runs.frozen"])
        self.running: list[multiprocessing.process.BaseProcess] = []

    def make(self, step: str, force: bool, say: Callable[[str], None]) -> None:
        """Make a step; `say` is told what happens.  Raises UserError with the reason if it
        fails."""
        self._call(_make, (step, force), step, say)

    def plan(self, notebooks: list[str], force: bool) -> tuple[list, dict]:
        """See `graph.plan_side_by_side`."""
        return self._call(_plan, (notebooks, force), "the plan", print)

    def _call(self, function: Callable, given: tuple, what: str, say: Callable) -> Any:
        here, there = self.context.Pipe(duplex=False)
        task = (function, given, what, self.run, self.log, there)
        process = self.context.Process(target=work, args=task)
        process.start()
        self.running.append(process)
        there.close()
        try:
            while isinstance(answer := here.recv(), str):
                say(answer)
        except EOFError:
            process.join()  # its exit code is known then
            why = f"exit code {process.exitcode}; -9: memory ran out; its last words: {self.log}"
            lost = f"the process that made {what} was lost ({why}); the same command resumes"
            raise UserError(lost) from None
        finally:
            here.close()
            process.join()
            self.running.remove(process)
        if answer["error"]:
            raise UserError(answer["error"])
        return answer["result"]

    def interrupt(self) -> None:
        """Ask the steps under way to stop at the next point from which they can resume."""
        for process in list(self.running):
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)

    def close(self) -> None:
        """Wait for what is still under way; it is killed where it takes too long.  The process that
        they are copied from ends, too."""
        for process in list(self.running):
            process.join(PATIENCE_S)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(AttributeError):  # Python has it, but doesn't promise it
            forkserver._forkserver._stop()


def work(
    function: Callable, given: tuple, what: str, run: Path, log: Path, tell: Connection
) -> None:
    """Call a function in this process, and tell what happens: lines, at last result and error."""
    os.setsid()  # Ctrl-C is for the process that asked, which hands it on
    with open(log, "a", opener=not_through_links) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    result = error = None
    try:
        result = function(Run.open(run, say=tell.send), tell, *given)
    except UserError as reason:
        error = str(reason)
    except KeyboardInterrupt as reason:
        error = f"{what} was stopped {reason}".strip()
    except Exception as reason:
        traceback.print_exc()
        error = f"{what}: {type(reason).__name__}: {one_line(reason)}"
        if out_of_memory(reason):
            error = f"{what}: memory ran out ({one_line(reason)}): take fewer --jobs; it resumes"
    tell.send({"result": result, "error": error})


def _make(run: Run, tell: Connection, step: str, force: bool) -> None:
    import transformers

    from speechgpt_lib.pipeline.graph import make

    transformers.logging.set_verbosity_error()
    make(run, step, force, on_log=lambda row: _tell(row, tell))


def _plan(run: Run, tell: Connection, notebooks: list[str], force: bool) -> tuple[list, dict]:
    from speechgpt_lib.pipeline.graph import plan_side_by_side

    return plan_side_by_side(run, notebooks, force)


def _tell(row: dict, tell: Connection) -> None:
    shown = [f"step {row['step']}"] if "step" in row else []
    shown += [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if shown:
        tell.send(" ".join(["      …", *shown]))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
