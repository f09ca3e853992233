"""A process in a job of Slurm, which ends with the daemon that watches over it.

That daemon (slurmstepd) tells Slurm how a task ended.  If it is killed, nobody does: the job shows
as running until Slurm next compares notes with the node, and what it began goes on as an orphan.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import psutil

from speechgpt_lib.errors import UserError

LOOK_S = 1.0  # between two looks at the daemon


@contextlib.contextmanager
def watched_by_slurm() -> Iterator[None]:
    """Around the work of a process: where its daemon is lost, it gets SIGTERM, and its job is
    requeued when it has stopped.  Outside a job of Slurm this does nothing.

    Raises UserError where the daemon was lost already.
    """
    task = _task()
    daemon = task and task.parent()
    if task is None:
        yield
        return
    if daemon is None or daemon.name() != "slurmstepd":
        if _requeue():
            raise UserError("the daemon of this job (slurmstepd) was lost: the job is requeued")
        yield
        return
    over = threading.Event()
    threading.Thread(target=_watch, args=(daemon, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if not daemon.is_running():
            _requeue()


def _task() -> psutil.Process | None:
    """The process that Slurm started: this one, or one above it.  None elsewhere, and in a
    container that has process numbers of its own."""
    number, me = os.environ.get("SLURM_TASK_PID"), psutil.Process()
    return next((p for p in (me, *me.parents()) if str(p.pid) == number), None)


def _watch(daemon: psutil.Process, over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        if not daemon.is_running():
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _requeue() -> bool:
    """Have Slurm put the job of this process back into its queue; whether it does."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # the job's own id may mean all its parts
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with contextlib.suppress(OSError):  # nobody may read what is printed here
        return subprocess.run(["scontrol", "requeue", job], check=False, **nowhere).returncode == 0
    return False
