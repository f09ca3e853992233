"""A process that makes steps one after the other as it is told, and the handle by which another
process tells it.

Orders come in on standard input and answers go out on standard output, a JSON object a line.  Such
a process is started once and kept: importing the libraries takes longer than many a step.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.runs.machine import return_free_memory
from speechgpt_lib.runs.processes import end_with_parent
from speechgpt_lib.runs.run import Run

MARK = "\x1e"  # begins a line that is an answer; what libraries print has none


class StepServer:
    """The handle.  One thread at a time may use it."""

    def __init__(self, run: Path, log: Path):
        # Not -m: processes that a step starts would import this module anew, and torch with it.
        program = "import sys; from speechgpt_lib.pipeline.serve import serve; serve(sys.argv[1])"
        command = [sys.executable, "-c", program, str(run)]
        with open(log, "a") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.log = log

    def make(self, step: str, force: bool, say: Callable[[str], None]) -> None:
        """Make a step; `say` is told what happens.  Raises UserError with the reason when it
        fails."""
        try:
            self.process.stdin.write(json.dumps({"step": step, "force": force}) + "\n")
            self.process.stdin.flush()
        except OSError:  # it has ended
            raise self._lost(step) from None
        for line in self.process.stdout:
            printed, mark, rest = line.partition(MARK)  # a library may leave its line open
            answer = json.loads(rest) if mark else {"say": printed.rstrip()}
            if mark and printed.strip():
                say(printed.rstrip())
            if "say" in answer:
                say(answer["say"])
            elif answer.get("error"):
                raise UserError(answer["error"])
            else:
                return
        raise self._lost(step)

    def interrupt(self) -> None:
        """Ask the step under way to stop at the next point from which it can resume."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def close(self, patience_s: float = 20.0) -> None:
        """End the process; it is killed where it takes too long."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()

    def _lost(self, step: str) -> UserError:
        code = self.process.wait()
        why = f"exit code {code}; -9: memory ran out; its last words are in {self.log}"
        return UserError(f"the process that made {step} was lost ({why}); the same command resumes")


def serve(run_dir: str) -> None:
    """Make steps until standard input ends."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    transformers.logging.set_verbosity_error()
    with contextlib.suppress(KeyboardInterrupt):  # one that comes between two steps
        run = Run.open(run_dir, say=lambda line: _tell(say=line))
        for line in sys.stdin:
            order = json.loads(line)
            try:
                make(run, order["step"], order["force"], on_log=_tell_row)
                return_free_memory()  # before others are told that there is room for them
                _tell(done=True)
            except UserError as error:
                _tell(error=str(error))
            except KeyboardInterrupt as error:
                _tell(error=f"{order['step']} was stopped {error}".strip())
            except Exception as error:
                traceback.print_exc()
                _tell(error=f"{order['step']}: {type(error).__name__}: {error}")


def _tell_row(row: dict) -> None:
    shown = [f"step {row['step']}"] if "step" in row else []
    shown += [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if shown:
        _tell(say=" ".join(["      …", *shown]))


def _tell(**answer: Any) -> None:
    print(MARK + json.dumps(answer), flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
