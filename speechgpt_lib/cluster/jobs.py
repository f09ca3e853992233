"""The graph of steps → the jobs of a cluster: arrays, trainings on several nodes, notebooks.

What is finished needs no job.  A job is known by its name, which is also that of its script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from speechgpt_lib.cluster.site import Kind, Site
from speechgpt_lib.notebook.runner import find_notebooks, missing_notebooks
from speechgpt_lib.pipeline.graph import Planned, find_step, left_out, notebook_steps, order, plan
from speechgpt_lib.runs.names import NOTEBOOKS
from speechgpt_lib.runs.run import Run

MADE_HERE = ("made", "remade", "resumed")  # of `Planned.state`: not reused, not imported


@dataclass(frozen=True)
class ClusterJob:
    """One job: `command` runs in every process, of which there are `ranks` on each of `nodes`.

    `parts` of an array (0: none) each find their number in SLURM_ARRAY_TASK_ID.  It begins once the
    jobs `needs` have ended well and the jobs `after` at all.
    """

    name: str
    kind: Kind
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    nodes: int = 1
    ranks: int = 1
    gpu: bool = False
    parts: int = 0
    step: str = ""  # of the graph


def jobs_of(run: Run, site: Site) -> list[ClusterJob]:
    """What must run so that all steps and notebooks of `run` are finished, each after what it
    needs."""
    planned = plan(run)
    todo = [step for step in planned if step.state != "reused"]
    names = {step.step for step in todo}
    jobs = [job for step in todo for job in _of_step(run, site, step, names)]
    return jobs + _of_notebooks(run, names)


def _of_step(run: Run, site: Site, step: Planned, todo: set[str]) -> list[ClusterJob]:
    """The job of a step; of one whose shards can be made apart, an array and the job that joins."""
    definition, needs = find_step(step.step), tuple(n for n in step.needs if n in todo)
    cost = definition.cost
    make = (*_cli("make", step.step), *_where(run))
    plain = ClusterJob(step.step, "step", make, needs, gpu=cost.gpu, step=step.step)
    here = step.state in MADE_HERE
    if here and definition.in_parts(run.recipe) and site.array.tasks > 1:
        count = site.array.tasks
        part = ClusterJob(
            f"{step.step}-parts",
            "array",
            (*make, "--shards", f"$SLURM_ARRAY_TASK_ID::{count}"),
            needs,
            gpu=site.gpus_per_node > 0,
            parts=count,
            step=step.step,
        )
        return [part, replace(plain, needs=(part.name,))]
    if here and cost.processes:
        processes = run.recipe.processes
        if processes == 1:
            return [replace(plain, kind="training")]
        # As few nodes as will do, each with as many of them.
        nodes = next(
            n for n in range(-(-processes // site.ranks), processes + 1) if not processes % n
        )
        worker = "-m", "speechgpt_lib.pipeline.worker", step.step, str(run.path), str(processes)
        shape = {"nodes": nodes, "ranks": processes // nodes}
        return [replace(plain, kind="training", command=worker, **shape)]
    return [plain]


def _of_notebooks(run: Run, todo: set[str]) -> list[ClusterJob]:
    """A job for each notebook that is not executed yet, or shows what will be made anew.  They
    follow each other, since they write into one folder; one that fails holds up none."""
    notebooks = find_notebooks()
    missing = missing_notebooks(run, notebooks)
    jobs: list[ClusterJob] = []
    for name in (path.stem for path in notebooks):
        if left_out(run.recipe, name):
            continue
        needs = unmade(run, name, todo)
        if needs or name in missing:
            command = (*_cli("run", "--only", name, "--jobs", "1"), *_where(run))
            before = tuple(job.name for job in jobs[-1:])
            jobs.append(ClusterJob(f"notebook-{name[:2]}", "notebook", command, needs, before))
    return jobs


def unmade(run: Run, notebook: str, todo: set[str]) -> tuple[str, ...]:
    """The last of the steps `todo` that a notebook shows."""
    shown = notebook_steps(run.recipe, notebook) if notebook in NOTEBOOKS else list(todo)
    return _last(run, {step for step in order(run.recipe, shown) if step in todo})


def _last(run: Run, names: set[str]) -> tuple[str, ...]:
    """Those of some steps that none of the others needs: once they are done, all are."""
    before = {need for name in names for need in order(run.recipe, [name])[:-1]}
    return tuple(name for name in order(run.recipe, names) if name in names - before)


def _cli(*words: str) -> tuple[str, ...]:
    return ("-m", "speechgpt_lib.cli", *words)


def _where(run: Run) -> tuple[str, ...]:
    return ("--recipe", str(run.path / "recipe.yaml"), "--run-dir", str(run.path))


def table(jobs: Sequence[ClusterJob], site: Site) -> str:
    """The jobs as text: a line for each, with what it takes and what it waits for."""
    lines = []
    for job in jobs:
        size = f"{job.parts} parts" if job.parts else f"{job.nodes} × {job.ranks}"
        size += " with a GPU" if job.gpu and site.gpus_per_node else ""
        waits = ", ".join((*job.needs, *(f"{name} (however it ends)" for name in job.after)))
        limit = getattr(site.times, job.kind)
        lines.append(
            f"{job.name:20} {job.kind:9} {size:20} {limit:>12}  {'← ' * bool(waits)}{waits}"
        )
    return "\n".join(lines)
