"""`speechgpt run --on slurm`, `doctor --on slurm`, `status` and `cancel`: a run on a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from speechgpt_lib.cli import options
from speechgpt_lib.cli.options import argument, emit, open_run, say
from speechgpt_lib.recipes.schema import Recipe


def run_on_slurm(
    settings: Recipe, folder: Path, site_file: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Submit what is missing of a run; with `dry_run` only write the scripts and list them."""
    from speechgpt_lib.cluster.jobs import table
    from speechgpt_lib.cluster.site import load_site
    from speechgpt_lib.cluster.submit import FOLDER, submit_missing, write_scripts
    from speechgpt_lib.runs.run import Run

    site = load_site(site_file)
    run = Run.create(folder.absolute(), settings, say)
    if dry_run:
        jobs = write_scripts(run, site)
        lines = [table(jobs, site), f"scripts   {run.path / FOLDER}"]
        emit({"jobs": [asdict(job) for job in jobs]}, "\n".join(lines), as_json)
        return
    new, old = submit_missing(run, site)
    lines = [f"submitted {name} as job {job}" for name, job in new.items()]
    lines += [f"waits in the queue: {name}, job {job}" for name, job in old.items()]
    lines += [f"look at it: speechgpt status {folder}"] if new or old else ["all of it is finished"]
    emit({"run": str(run.path), "submitted": new, "queued": old}, "\n".join(lines), as_json)


def cluster_checks(run: Path, site_file: Path | None, recipe: Recipe | None) -> list:
    """What `speechgpt doctor --on slurm` finds, for the folders that a recipe reads."""
    from speechgpt_lib.cluster.check import check_cluster
    from speechgpt_lib.cluster.site import load_site

    on_disk = recipe and not recipe.lab and "://" not in recipe.data
    paths = (Path(recipe.data).expanduser(),) if on_disk else ()
    return check_cluster(run, load_site(site_file), paths)


def status(
    run: argument(Path, "The run directory."),
    as_json: options.AsJson = False,
) -> None:
    """How the jobs of a run stand on the cluster: waiting, running, failed and why, done."""
    from speechgpt_lib.cluster.status import status as status_of

    found = status_of(open_run(run, quiet=True))
    lines = []
    for job in found:
        lines.append(f"{job.name:20} {job.id:>8}  {job.state:8} {job.more}".rstrip())
        lines += [f"{'':30}  see {job.log}"] if job.state == "failed" and job.log else []
    emit([asdict(job) for job in found], "\n".join(lines) or "nothing was submitted", as_json)


def cancel(
    run: argument(Path, "The run directory."),
    as_json: options.AsJson = False,
) -> None:
    """Cancel the jobs of a run; what is finished is kept."""
    from speechgpt_lib.cluster.submit import cancel_all

    found = cancel_all(open_run(run, quiet=True))
    lines = [f"cancelled {name}, job {job}" for name, job in found.items()]
    emit(found, "\n".join(lines) or "nothing of it is in the queue", as_json)
