"""Steps in processes of their own: each begins as a copy of one that has the libraries already, and
gives all its memory back when it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import transformers

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.runs.processes import end_with_parent
from speechgpt_lib.runs.run import Run

PATIENCE_S = 20.0  # for a step that was asked to stop


class StepProcesses:
    """Makes steps of a run in other processes; any number of threads may call `make`.

    `log` takes what they print.  On a CPU they are forked from one process, which never computes;
    a GPU can't be used after a fork, so there each starts anew.
    """

    def __init__(self, run: Path, log: Path, device: str = "cpu"):
        self.run, self.log = run, log
        self.context = multiprocessing.get_context("forkserver" if device == "cpu" else "spawn")
        if device == "cpu":
            self.context.set_forkserver_preload([__name__])
        self.running: list[multiprocessing.process.BaseProcess] = []

    def make(self, step: str, force: bool, say: Callable[[str], None]) -> None:
        """Make a step; `say` is told what happens.  Raises UserError with the reason if it
        fails."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(self.run, self.log, step, force, there))
        process.start()
        self.running.append(process)
        there.close()
        try:
            while isinstance(answer := here.recv(), str):
                say(answer)
        except EOFError:
            process.join()
            why = f"exit code {process.exitcode}; -9: memory ran out; its last words: {self.log}"
            lost = f"the process that made {step} was lost ({why}); the same command resumes"
            raise UserError(lost) from None
        finally:
            here.close()
        process.join()
        self.running.remove(process)
        if answer["error"]:
            raise UserError(answer["error"])

    def interrupt(self) -> None:
        """Ask the steps under way to stop at the next point from which they can resume."""
        for process in self.running:
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)

    def close(self) -> None:
        """Wait for what is still under way; it is killed where it takes too long."""
        for process in self.running:
            process.join(PATIENCE_S)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)


def work(run_dir: Path, log: Path, step: str, force: bool, tell: Connection) -> None:
    """Make a step in this process, and tell what happens: lines, and at last {"error": …}."""
    os.setsid()  # Ctrl-C is for the process that asked for the step, which hands it on
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    transformers.logging.set_verbosity_error()
    error = None
    try:
        make(Run.open(run_dir, say=tell.send), step, force, on_log=lambda row: _tell(row, tell))
    except UserError as reason:
        error = str(reason)
    except KeyboardInterrupt as reason:
        error = f"{step} was stopped {reason}".strip()
    except Exception as reason:
        traceback.print_exc()
        error = f"{step}: {type(reason).__name__}: {reason}"
    tell.send({"error": error})


def _tell(row: dict, tell: Connection) -> None:
    shown = [f"step {row['step']}"] if "step" in row else []
    shown += [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if shown:
        tell.send(" ".join(["      …", *shown]))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
