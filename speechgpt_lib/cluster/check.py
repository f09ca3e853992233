"""Is this cluster fit for a run? Seen from here, and from inside a job: `doctor --on slurm`."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from speechgpt_lib import __version__
from speechgpt_lib.cluster import slurm
from speechgpt_lib.cluster.jobs import ClusterJob
from speechgpt_lib.cluster.script import render
from speechgpt_lib.cluster.site import Site
from speechgpt_lib.cluster.status import last_error
from speechgpt_lib.cluster.submit import FOLDER
from speechgpt_lib.doctor import Check
from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.runs.artefacts import read_json, write_text

PROGRAMS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol")
CLOCK_S = 2.0  # by which clocks may differ
QUEUE_S = 600.0  # how long the job may wait for its place


def check_cluster(run_dir: Path, site: Site, paths: tuple[Path, ...] = ()) -> list[Check]:
    """Whether Slurm, the environment, the run directory and `paths` (of data) are there: here, and
    on two nodes, by a job of a minute.  Never raises for what is missing; later checks are left out
    where they can tell nothing."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    checks = [
        _check("Slurm's commands", not lacking, f"no {', '.join(lacking)}" if lacking else "there")
    ]
    if lacking:
        return checks
    folder = run_dir.absolute() / FOLDER / "doctor"
    word = secrets.token_hex(8)
    checks += [
        _tried("partition", lambda: slurm.check_partition(site.partition), site.partition or "any"),
        _tried("array", lambda: slurm.check_array(site.array.tasks), f"{site.array.tasks} parts"),
        _tried("run directory, here", lambda: _prepare(folder, word), str(run_dir)),
    ]
    if all(check.ok for check in checks):
        checks += _from_inside(folder, word, site, paths)
    return checks


def _prepare(folder: Path, word: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    write_text(folder / "word", word)


def _from_inside(folder: Path, word: str, site: Site, paths: tuple[Path, ...]) -> list[Check]:
    """What the tasks of a job on two nodes (or the only one) say."""
    seen = [str(path.absolute()) for path in paths]
    command = ("-m", "speechgpt_lib.cluster.probe", str(folder), word, *seen)
    script = folder / "doctor.sbatch"
    try:
        slurm.refuse_inside_a_job()
        nodes = min(2, slurm.count_nodes(site.partition))
        job = ClusterJob("doctor", "step", command, nodes=nodes)
        write_text(script, render(job, site, folder))
        number = slurm.submit(script, [])
        ended = _wait(number, QUEUE_S)
    except UserError as error:
        return [_check("a job", False, one_line(error))]
    checks = [_check("a job", ended is None, ended or f"job {number} ran on {nodes} nodes")]
    answers = [read_json(path) for path in sorted(folder.glob("answer-*.json"))]
    if ended is None:
        log = folder / "logs" / f"doctor-{number}.log"
        checks += judge(answers, nodes, log)
    return checks


def _wait(number: str, seconds: float) -> str | None:
    """Wait for the end of a job; why it did not come (it is cancelled then), or None."""
    deadline = time.monotonic() + seconds
    try:
        while set(slurm.states([number])[number]) & set(slurm.ALIVE):
            if time.monotonic() > deadline:
                why = slurm.reason(number)
                return f"still in the queue after {seconds:.0f} s ({why}); cancelled"
            time.sleep(1)
        return None
    finally:  # nothing is left behind, whoever interrupts
        slurm.cancel([number])


def judge(answers: list[dict], nodes: int, log: Path) -> list[Check]:
    """The answers of a job's tasks (see `probe.py`) → checks; `log` is that of the job."""
    if not answers:
        if not log.is_file():
            what = "the job wrote nothing, not even a log: is this folder on a disk of all nodes?"
            return [_check("run directory, on nodes", False, f"{what} {log.parent.parent}")]
        why = last_error(log) or "an empty log"
        return [_check("environment, on nodes", False, f"{why} (see {log})")]
    blind = [a["node"] for a in answers if not a["sees_folder"]]
    others = [f"{a['node']}: {a['speechgpt']}" for a in answers if a["speechgpt"] != __version__]
    missing = [f"{a['node']}: {path}" for a in answers for path in a["missing"]]
    alone = [f"{a['node']}: {a['alone']}" for a in answers if "alone" in a]
    ahead = {a["node"]: a["clock_s"] for a in answers if abs(a.get("clock_s", 0)) > CLOCK_S}
    late = [f"{node}: {seconds:+.1f} s" for node, seconds in ahead.items()]
    silent = nodes - len(answers)
    there = ", ".join(sorted({a["node"] for a in answers}))
    found = {
        "run directory, on nodes": [*blind, *[f"{silent} without an answer"] * (silent > 0)],
        "environment, on nodes": others,
        "data, on nodes": missing,
        "nodes reach each other": alone,
        "clocks": late,
    }
    return [_check(name, not bad, "; ".join(bad) or there) for name, bad in found.items()]


WORDS = {
    "Slurm's commands": ("sbatch and its like on PATH", "run it on a login node of the cluster"),
    "partition": ("one that sinfo lists", "every job is refused; name another in the site file"),
    "array": ("at most MaxArraySize", "arrays are refused; lower array.tasks in the site file"),
    "run directory, here": ("a folder one may write", "nothing can be submitted"),
    "a job": ("a job that runs", "sbatch's words tell why; compare the site file"),
    "run directory, on nodes": (
        "the same folder on all nodes, writable",
        "jobs leave no trace: put the run directory on a shared disk",
    ),
    "environment, on nodes": (
        f"speechgpt_lib {__version__}",
        "jobs fail at once: name `python` and `setup` in the site file as the nodes see them",
    ),
    "data, on nodes": ("the recipe's folders", "steps that read them fail: use a shared disk"),
    "nodes reach each other": (
        "a connection to the first node's ports from 20000 to 29999",
        "trainings on several nodes wait, then fail: ask your administrator",
    ),
    "clocks": (f"at most {CLOCK_S:g} s apart", "what is new looks old: ask your administrator"),
}


def _check(name: str, ok: bool, found: str) -> Check:
    return Check(name, ok, found, *WORDS[name], required=True)


def _tried(name: str, do: Callable[[], object], found: str) -> Check:
    """A check that is good if `do` raises nothing."""
    try:
        do()
    except (UserError, OSError) as error:
        return _check(name, False, one_line(error))
    return _check(name, True, found)
