"""Training one step of a run in this process, or in several on this machine through torchrun.

`accelerate launch --cpu` starts processes that each train alone; torchrun makes them one group, and every training is told the number
of processes it must have.  The workers die with their launcher, and the launcher with us: no orphan keeps memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.log import read_metrics

TRAINED = ("hubert", "vocoder", "text_to_unit", "text_model", "stage1", "stage2", "stage3")
METRICS = "metrics.jsonl"  # in a step's folder
LOOK_S = 0.5  # between two looks at the log
LOG = "launch.log"  # in the run directory: what the processes of the last launch wrote to stderr
PATIENCE_S = 60.0  # to finish the current step and save, after which torchrun itself kills its workers (30 s)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def train_step(
    run: Run,
    name: str,
    processes: int = 1,
    force: bool = False,
    on_log: Callable[[dict], None] | None = None,
) -> Step:
    """Make the trained step `name` ("stage1") of `run` in `processes` processes; `on_log` is told every row of its metrics log.

    Raises:
        UserError: unknown step, or a process failed (with its reason; all it wrote is in `launch.log` in the run directory).
    """
    from speechgpt_lib import pipeline

    if name not in TRAINED:
        raise UserError(f"unknown step {name!r}: choose one of {', '.join(TRAINED)}")
    if processes == 1:
        return getattr(pipeline, f"make_{name}")(run, force=force, on_log=on_log)
    target = getattr(pipeline, name.upper())
    if (
        force
    ):  # else some workers might still see the checkpoints that the first one is about to drop
        shutil.rmtree(run.path / f"{target}.partial", ignore_errors=True)
    command = torchrun_command(name, run, processes, force)
    run.say("$ " + " ".join(["python", *command[1:]]))
    follower = Follower(on_log or (lambda row: None), run.path / f"{target}.partial")
    earlier = run.find(target)
    status = supervise(command, run.say, run.path / LOG, follower.look)
    if status != 0:
        reason = _reason(run.path / LOG)
        raise UserError(
            f"training {name} in {processes} processes ended with exit code {status}: {reason} (more in {run.path / LOG})"
        )
    step = run.require(target)
    if earlier is None or earlier.facts != step.facts:  # it was made just now
        follower.tell_new(step.path)
    return step


class Follower:
    """Tells the rows of the metrics log that others write in `work`, each once and in order; a line half written waits until it is whole.

    What an earlier attempt has left there counts once this attempt has taken it up, which it says by writing the file `key` anew.
    """

    def __init__(self, tell: Callable[[dict], None], work: Path):
        self.tell, self.work, self.told = tell, work, 0  # the last step that was told
        self.before = self._key_written()

    def look(self) -> None:
        if self._key_written() not in (None, self.before):
            self.tell_new(self.work)

    def tell_new(self, folder: Path) -> None:
        for row in read_metrics(folder / METRICS):
            if row["step"] > self.told:
                self.told = row["step"]
                self.tell(row)

    def _key_written(self) -> int | None:
        try:
            return (self.work / "key").stat().st_mtime_ns
        except OSError:
            return None


def torchrun_command(name: str, run: Run, processes: int, force: bool = False) -> list[str]:
    """The command that starts `processes` workers as one group; each is told how many there must be."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    return [
        *launcher,
        "-m",
        "speechgpt_lib.training.worker",
        name,
        str(run.path),
        str(processes),
        *["force"] * force,
    ]


def supervise(
    command: list[str],
    say: Callable[[str], None],
    log: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Run a command in a session of its own that ends when we do; say what it prints, and return its exit code.

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
    """Hold an interrupt (SIGINT) back until the block ends, or until the function that it gives is called: half a start or half an import
    is worse than a moment's wait.  Python tells interrupts to the main thread alone; elsewhere this does nothing.
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
    """Ask the launcher to stop, which lets its workers save; kill it when that takes too long or a second interrupt comes."""
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


def _reason(log: Path) -> str:
    """The first line in which a worker said why it ended, else the first error of any kind."""
    lines = [
        re.sub(r"^\[rank\d+\]: ", "", line) for line in log.read_text(errors="replace").splitlines()
    ]
    own = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    other = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return next(iter(own + other), "no reason given").removeprefix("error: ")
