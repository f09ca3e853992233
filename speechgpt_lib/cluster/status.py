"""How the jobs of a run stand: waiting, running with progress, failed with the last error, done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from speechgpt_lib.cluster import slurm
from speechgpt_lib.cluster.jobs import unmade
from speechgpt_lib.cluster.submit import logs_of, read_ledger
from speechgpt_lib.notebook.runner import find_notebooks, missing_notebooks
from speechgpt_lib.pipeline.graph import plan
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.log import read_metrics

NO_LOG = "it left no log; do the nodes see this folder? speechgpt doctor --on slurm"


@dataclass(frozen=True)
class Status:
    """A job: its state, more about it, and where its log is."""

    name: str
    id: str
    state: str
    more: str = ""
    log: str = ""


def status(run: Run) -> list[Status]:
    """How every job that was submitted for `run` stands."""
    ledger = read_ledger(run)
    known = slurm.states(facts["id"] for facts in ledger.values())
    planned, notebooks = plan(run), find_notebooks()
    todo = {step.step for step in planned if step.state != "reused"}
    there = {step.step for step in planned} - todo
    executed = {path.stem for path in notebooks} - missing_notebooks(run, notebooks)
    there |= {f"notebook-{name[:2]}" for name in executed if not unmade(run, name, todo)}
    return [_status(run, name, facts, known[facts["id"]], there) for name, facts in ledger.items()]


def _status(run: Run, name: str, facts: dict, states: list[str], there: set) -> Status:
    logs = logs_of(run, name, facts["id"])
    log = str(logs[-1]) if logs else ""
    counts = Counter(states)
    if set(states) & set(slurm.UNDER_WAY):
        more = _parts(counts) if facts["parts"] else _progress(run, facts["step"])
        return Status(name, facts["id"], "running", more, log)
    if set(states) & set(slurm.WAITING):
        return Status(name, facts["id"], "waiting", _parts(counts) if facts["parts"] else "", log)
    if (facts["step"] or name) in there:
        return Status(name, facts["id"], "done")
    ended = ", ".join(sorted(counts)).lower().replace("_", " ") or "gone from the queue"
    if facts["parts"] and set(counts) == {"COMPLETED"}:
        return Status(name, facts["id"], "done", "its parts are not joined yet")
    words = last_error(logs[-1]) if logs else NO_LOG * (ended != "cancelled")
    return Status(name, facts["id"], "failed", f"{ended}{': ' * bool(words)}{words}", log)


def _parts(counts: Counter) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()))


def _progress(run: Run, step: str) -> str:
    """How far a training is, by the last row of its log."""
    rows = read_metrics(run.path / f"{folder_of(step)}.partial" / "metrics.jsonl") if step else []
    if not rows:
        return ""
    left = rows[-1].get("seconds_left")
    return f"step {rows[-1]['step']}" + (f", {left / 60:.0f} min left" if left is not None else "")


def last_error(log: Path) -> str:
    """The last line of a log that tells an error, else its last line.  That srun failed, or that
    Slurm cancelled the other tasks (in stars), is no cause, and may stand before or after it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if "rror" in line and not line.startswith("srun: ")]
    causes = [line for line in errors if "error: *** " not in line]
    return (causes or errors or lines or [""])[-1][:300]
