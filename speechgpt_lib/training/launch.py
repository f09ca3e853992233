"""Training one step of a run in this process, or in several on this machine through torchrun.

`accelerate launch --cpu` starts processes that each train alone; torchrun makes them one group, and every training is told the number
of processes it must have.  The workers die with their launcher, and the launcher with us: no orphan keeps memory.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.run import Run, Step

TRAINED = ("hubert", "vocoder", "text_to_unit", "text_model", "stage1", "stage2", "stage3")


def train_step(run: Run, name: str, processes: int = 1, force: bool = False) -> Step:
    """Make the trained step `name` ("stage1") of `run` in `processes` processes."""
    from speechgpt_lib import pipeline

    if name not in TRAINED:
        raise UserError(f"unknown step {name!r}: choose one of {', '.join(TRAINED)}")
    make = getattr(pipeline, f"make_{name}")
    if processes == 1:
        return make(run, force=force)
    target = getattr(pipeline, name.upper())
    if force:  # decided here, once: the workers must not disagree about what they find
        for folder in (run.path / target, run.path / f"{target}.partial"):
            shutil.rmtree(folder, ignore_errors=True)
    command = torchrun_command(name, run, processes)
    run.say("$ " + " ".join(command))
    status = supervise(command)
    if status != 0:
        raise UserError(f"training {name} in {processes} processes ended with exit code {status}; see the lines above")
    return run.require(target)


def torchrun_command(name: str, run: Run, processes: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, "-m", "speechgpt_lib.training.worker", name, str(run.path)]


def supervise(command: list[str]) -> int:
    """Run a command in a session of its own that ends when we do, pass signals on, and return its exit code."""
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise


def _die_with_parent() -> None:
    """Ask Linux to send the launcher SIGTERM when its parent is gone (torchrun then stops its workers)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
