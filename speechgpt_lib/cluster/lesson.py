"""A training that a cluster takes away and gives back, for notebook 10: for real where a Slurm
answers, else as it was recorded on one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from speechgpt_lib.cluster import slurm
from speechgpt_lib.cluster.site import Site
from speechgpt_lib.cluster.submit import FOLDER, logs_of, write_scripts
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import read_json
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.log import read_metrics

RECORDED = Path(__file__).with_name("recorded.json")
PATIENCE_S = 900.0


class Story(NamedTuple):
    """What came of it: the rows of the training's log, the lines of the job's, and where."""

    log: list[dict]
    said: list[str]
    where: str


def interrupted_training(run: Run, step: str, rows: int, site: Site) -> Story:
    """Submit the training of `step`; once its log has so many `rows`, its job hears the signal of
    one that must make room.  It saves, is requeued and goes on; waits for its end.

    Where no cluster takes the job, the story that was recorded on one, which says so and why.
    Raises UserError where the job fails, or takes more than a quarter of an hour.
    """
    try:
        slurm.refuse_inside_a_job()
        slurm.check_partition(site.partition)
        write_scripts(run, site)
        job = slurm.submit(run.path / FOLDER / f"{step}.sbatch", ())
    except UserError as why:
        story = Story(**read_json(RECORDED))
        return story._replace(where=f"recorded {story.where}, since here: {why}")
    log = run.path / f"{folder_of(step)}.partial" / "metrics.jsonl"
    try:
        _wait(lambda: len(read_metrics(log)) >= rows or not _alive(job), job)
        slurm.call("scancel", "--signal=USR1", job)
        _wait(lambda: not _alive(job), job)
    except BaseException:  # an interrupt, too, leaves no job behind
        slurm.cancel([job])
        raise
    said = [line for path in logs_of(run, step, job) for line in path.read_text().splitlines()]
    if not (made := run.find(step)):
        raise UserError(f"job {job} has failed: {' / '.join(said[-3:])}")
    where = f"on {os.uname().nodename}, {slurm.call('sinfo', '--version').strip()}, job {job}"
    return Story(read_metrics(made.path / "metrics.jsonl"), said, where)


def _alive(job: str) -> bool:
    return bool(set(slurm.states([job])[job]) & set(slurm.ALIVE))


def _wait(until: Callable[[], bool], job: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        if time.monotonic() > deadline:
            raise UserError(f"job {job} is still {slurm.states([job])[job]}: {slurm.reason(job)}")
        time.sleep(1)
