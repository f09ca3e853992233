"""A daemon of Slurm is killed, here one that a script plays: the job is requeued."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")

# The process that Slurm starts is the task itself, or the job's script above it.
TASK = "sh -c 'export SLURM_STEP_ID=0 SLURM_TASK_PID=$$; exec {task}' & wait"
SCRIPT = "sh -c 'export SLURM_TASK_PID=$$; {task}; true' & wait"
CONTAINER = "sh -c 'export SLURM_TASK_PID=1234567; exec {task}' & wait"


WORK = """\
import pathlib, signal, sys, time
from speechgpt_lib.runs.slurm_task import watched_by_slurm
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
here, told = pathlib.Path(sys.argv[0]).parent, "at its end"
try:
    with watched_by_slurm():
        (here / "ready").touch()
        time.sleep(4)
except BaseException as error:
    told = str(error)
(here / "told.new").write_text(told)
(here / "told.new").rename(here / "told")
"""


@pytest.fixture
def play(tmp_path, root):
    """A function: have a daemon of this name start a task, kill it once the task is at work, and
    return what was asked of scontrol and how the task ended."""
    asked, task = tmp_path / "asked", tmp_path / "task.py"
    task.write_text(WORK)
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')

    def run(name: str, how: str, kill: bool = True) -> tuple[str, str]:
        daemon = tmp_path / name
        daemon.write_text(f"#!/bin/sh\n{how.format(task=f'{sys.executable} {task}')}\n")
        for program in (tmp_path / "scontrol", daemon):
            program.chmod(0o755)
        job = {"SLURM_JOB_ID": "5"}
        more = {"PYTHONPATH": str(root), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        with subprocess.Popen([daemon], env=os.environ | job | more) as process:
            wait_for(tmp_path / ("ready" if kill else "told"))
            process.kill()
        wait_for(tmp_path / "told")
        return asked.read_text() if asked.exists() else "", (tmp_path / "told").read_text()

    return run


def wait_for(path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_daemon_stops_its_work_and_the_job_is_requeued(play) -> None:
    assert play("slurmstepd", TASK) == ("requeue 5\n", "stopped")


def test_in_a_script_it_stops_and_the_script_does_the_rest(play) -> None:
    assert play("slurmstepd", SCRIPT) == ("", "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("how", [TASK, SCRIPT], ids=["task", "script"])
def test_a_daemon_that_lives_is_asked_nothing(play, how) -> None:
    assert play("slurmstepd", how, kill=False) == ("", "at its end")


@pytest.mark.slow
def test_elsewhere_nothing_is_watched(play) -> None:
    assert play("launcher", CONTAINER) == ("", "at its end")


@pytest.mark.parametrize("how,asked", [(TASK, "requeue 5\n"), (SCRIPT, "")], ids=["task", "script"])
def test_a_daemon_that_was_lost_before_leaves_nothing_to_do(play, how, asked) -> None:
    assert play("init", how, kill=False) == (asked, "the daemon of this job (slurmstepd) was lost")
