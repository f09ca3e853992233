"""Submitting what is missing, and no more: a ledger in the run directory knows what was submitted.

`slurm/` below the run directory holds a script for each job, their logs and `jobs.json`, the
ledger.  A job that Slurm still has is not submitted twice; what others wait for is found by its id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from speechgpt_lib.cluster import slurm
from speechgpt_lib.cluster.jobs import ClusterJob, jobs_of
from speechgpt_lib.cluster.script import render
from speechgpt_lib.cluster.site import Site
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import locked, read_json, write_json, write_text
from speechgpt_lib.runs.run import Run

FOLDER = "slurm"  # below the run directory


def write_scripts(run: Run, site: Site) -> list[ClusterJob]:
    """The jobs that are missing, with a script for each in `slurm/`; nothing is submitted."""
    jobs, folder = jobs_of(run, site), run.path / FOLDER
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for job in jobs:
        write_text(folder / f"{job.name}.sbatch", render(job, site, folder))
    return jobs


def submit_missing(run: Run, site: Site) -> tuple[dict[str, str], dict[str, str]]:
    """Submit what is neither finished nor in the queue; returns {name: id} of new and of old jobs.

    Raises UserError where there is no Slurm, in a job, for a partition that there is not or an
    array that is too large, and where a job is refused: those submitted before it are cancelled.
    """
    slurm.refuse_inside_a_job()
    slurm.check_partition(site.partition)
    slurm.check_array(site.array.tasks)
    busy = f"another process is submitting the jobs of {run.path}: wait for it"
    with locked(run.path / FOLDER / ".lock", busy):
        jobs = write_scripts(run, site)
        ledger = read_ledger(run)
        old = {name: ledger[name]["id"] for name in _alive(ledger)}
        new: dict[str, str] = {}
        with _all_or_none(run, new):
            for job in (job for job in jobs if job.name not in old):
                new[job.name] = _submit(run, job, old | new)
                now = datetime.now(UTC).isoformat(timespec="seconds")
                facts = {"step": job.step, "parts": job.parts}
                ledger[job.name] = {"id": new[job.name], "submitted": now, **facts}
                write_json(run.path / FOLDER / "jobs.json", ledger)  # known, whoever is killed now
    return new, old


def _submit(run: Run, job: ClusterJob, ids: dict[str, str]) -> str:
    after, before = ([ids[name] for name in names] for names in (job.needs, job.after))
    return slurm.submit(run.path / FOLDER / f"{job.name}.sbatch", after, before)


@contextlib.contextmanager
def _all_or_none(run: Run, new: dict[str, str]) -> Iterator[None]:
    """Where the block fails, cancels the jobs in `new` and takes them out of the ledger."""
    before, path = read_ledger(run), run.path / FOLDER / "jobs.json"
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(UserError):
            slurm.cancel([*new.values()])
        write_json(path, before) if before else path.unlink(missing_ok=True)
        if isinstance(error, UserError) and new:
            raise UserError(f"{error}; {len(new)} jobs submitted before are cancelled") from None
        raise


def read_ledger(run: Run) -> dict[str, dict]:
    """Job → {id, submitted, step, parts} of all that was ever submitted, newest id."""
    path = run.path / FOLDER / "jobs.json"
    return read_json(path) if path.is_file() else {}


def _alive(ledger: dict[str, dict]) -> list[str]:
    """The names of jobs that Slurm still has in its queue."""
    found = slurm.states(facts["id"] for facts in ledger.values())
    return [n for n, facts in ledger.items() if set(found[facts["id"]]) & set(slurm.ALIVE)]


def cancel_all(run: Run) -> dict[str, str]:
    """Cancel what of this run is in the queue; returns {name: id}.  What is finished is kept."""
    ledger = read_ledger(run)
    alive = {name: ledger[name]["id"] for name in _alive(ledger)}
    slurm.cancel([*alive.values()])
    return alive


def logs_of(run: Run, name: str, job: str) -> Sequence[Path]:
    """The logs of a job, the newest last."""
    found = (run.path / FOLDER / "logs").glob(f"{name}-{job}*.log")
    return sorted(found, key=lambda path: path.stat().st_mtime)
