"""A process in a job of Slurm, which ends with the daemon that watches over it.

That daemon (slurmstepd) tells Slurm how a task ended.  If it is killed, nobody does: the job shows
as running until Slurm next compares notes with the node, and what it began goes on as an orphan.
So it stops, and a task of srun has its job requeued; in a job's script, the script does that
(`cluster/script.py`).
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
    """Around the work of a process: it gets SIGTERM where its daemon is lost.  Outside a job of
    Slurm this does nothing.

    Raises UserError where the daemon was lost before.
    """
    task = _task()
    if task is None:
        yield
        return
    daemon, over = task.ppid(), threading.Event()
    if not _may_be_daemon(daemon):
        _requeue()
        raise UserError("the daemon of this job (slurmstepd) was lost")
    threading.Thread(target=_watch, args=(task, daemon, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if _lost(task, daemon):
            _requeue()


def _task() -> psutil.Process | None:
    """The process that Slurm started: this one, or one above it.  None elsewhere, and in a
    container that has process numbers of its own."""
    if not (number := os.environ.get("SLURM_TASK_PID")):
        return None
    me = psutil.Process()
    return next((p for p in (me, *me.parents()) if str(p.pid) == number), None)


def _may_be_daemon(number: int) -> bool:
    """Whether a process may be slurmstepd; where a user may not see those of others, all but the
    first, which adopts whoever has lost his parent."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(number).name() == "slurmstepd"
    return number > 1


def _lost(task: psutil.Process, daemon: int) -> bool:
    """Whether the task is gone, or another process has adopted it."""
    with contextlib.suppress(psutil.Error):
        return task.ppid() != daemon
    return True


def _watch(task: psutil.Process, daemon: int, over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        if _lost(task, daemon):
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _requeue() -> None:
    """Have Slurm put the job of this task of srun back into its queue."""
    if "SLURM_STEP_ID" not in os.environ:  # the job's script, which sees to it
        return
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with contextlib.suppress(OSError):  # nobody may read what is printed here
        job = os.environ.get("SLURM_JOB_ID", "")
        subprocess.run(["scontrol", "requeue", job], check=False, **nowhere)
