"""Runs on a real Slurm of two nodes: nothing is lost or made twice, and results are the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from speechgpt_lib.cluster.check import WORDS, check_cluster
from speechgpt_lib.cluster.site import Array, Times, load_site
from speechgpt_lib.cluster.status import status
from speechgpt_lib.cluster.submit import cancel_all, submit_missing, write_scripts
from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import order
from speechgpt_lib.pipeline.launch import train_step
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.log import read_metrics
from tests.cluster.slurm_lab import SlurmLab

pytestmark = pytest.mark.slow


def quiet(line: str) -> None: ...


def hashes(run: Run) -> dict[str, dict]:
    """Step → the hashes of its files that say what was learned or made."""
    kinds = (".safetensors", ".parquet")
    return {
        step.name: {n: f["sha256"] for n, f in step.facts["outputs"].items() if n.endswith(kinds)}
        for step in run.steps()
    }


def states(run: Run) -> dict[str, str]:
    return {job.name: job.state for job in status(run)}


def test_three_of_32_parts_fail_once_and_are_tried_again(
    copied, on_slurm, site_file, tmp_path
) -> None:
    flaky = tmp_path / "flaky.sh"
    flaky.write_text(
        '#!/bin/bash\ncase "$SLURM_ARRAY_TASK_ID,${SLURM_RESTART_COUNT:-0}" in 1,0|7,0|30,0)\n'
        'echo "error: lost its disk" >&2; exit 3;; esac\n'
        # Two shards: most parts have nothing to do, and Python takes seconds to find that out.
        'case $SLURM_ARRAY_TASK_ID in ""|0|1|7|30) exec "$@";; esac\n'
    )
    flaky.chmod(0o755)
    wide = Array(tasks=32, retries=2)
    site = load_site(site_file).model_copy(update={"container": str(flaky), "array": wide})
    before = hashes(copied)
    shutil.rmtree(copied.require("units").path)
    new, _ = submit_missing(copied, site)
    assert new.keys() == {"units-parts", "units"}
    on_slurm.wait_until_empty(600)
    assert hashes(copied) == before and states(copied)["units"] == "done"
    logs = copied.path / "slurm" / "logs"
    said = {k: (logs / f"units-parts-{new['units-parts']}_{k}.log").read_text() for k in range(32)}
    again = {k for k, text in said.items() if "tried again (1 of 2 times)" in text}
    assert again == {1, 7, 30} and all("error: lost its disk" in said[k] for k in again)


def test_a_killed_job_is_told_and_only_it_is_submitted_again(copied, on_slurm, site_file) -> None:
    before, site = hashes(copied), load_site(site_file)
    for name in ("units", "cross_modal_set"):
        shutil.rmtree(copied.require(name).path)
    new, _ = submit_missing(copied, site)
    work = [f"make units --recipe {copied.path}"]
    on_slurm.wait_for(lambda: processes(work), 60)
    for process in processes(work):
        process.send_signal(signal.SIGKILL)
    # A part is tried twice more; killed each time, the whole has failed.
    parts = new["units-parts"]

    def failed() -> bool:
        for process in processes(work):
            process.send_signal(signal.SIGKILL)
        return "FAILED" in on_slurm.call("squeue", "-h", "-t", "all", "-j", parts, "-o", "%T")

    on_slurm.wait_for(failed, 120)
    on_slurm.wait_until_empty(120)
    found = {job.name: job for job in status(copied)}
    assert found["units-parts"].state == found["units"].state == "failed"
    assert "Killed" in Path(found["units-parts"].log).read_text()
    assert "cross_modal_set" in new and found["cross_modal_set"].state == "failed"
    again, _ = submit_missing(copied, site)
    assert {"units-parts", "units", "cross_modal_set-parts", "cross_modal_set"} <= set(again)
    on_slurm.wait_until_empty(300)
    assert hashes(copied) == before
    assert not processes(work), "no orphan is left"


def processes(wanted: list[str]) -> list[psutil.Process]:
    """The workers whose command line has one of these in it."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(text in line for text in wanted) and "srun" not in line.split()[0]:
            found.append(process)
    return found


def test_cancelled_jobs_stay_cancelled_until_asked_for(
    copied, on_slurm, site_file, tmp_path
) -> None:
    slow = tmp_path / "slow.sh"
    slow.write_text('#!/bin/bash\nsleep 300\nexec "$@"\n')
    slow.chmod(0o755)
    site = load_site(site_file).model_copy(update={"container": str(slow)})
    shutil.rmtree(copied.require("stage3").path)
    new, _ = submit_missing(copied, site)
    on_slurm.wait_for(lambda: states(copied)["stage3"] == "running", 60)
    assert cancel_all(copied).keys() == new.keys()
    on_slurm.wait_until_empty(60)
    assert set(states(copied).values()) == {"failed"} and not copied.find("stage3")
    assert "cancelled" in next(job.more for job in status(copied) if job.name == "stage3")


def test_a_training_on_two_nodes_that_is_preempted_twice(
    smoke_run, on_slurm, site_file, tmp_path
) -> None:
    """At steps that nobody chose; it ends as the one that nobody disturbed, no step lost or made
    twice."""
    # Parts of a batch one after the other make a step long enough to be disturbed in.
    more = {"steps": 80, "accumulation": 8, "precision": "no", "log_every": 1}
    few = {"processes": 2} | {f"stage1.optimization.{name}": n for name, n in more.items()}
    recipe = load_recipe(smoke_run / "recipe.yaml", few)
    base = Run.open(smoke_run, say=quiet)
    shared = {name: name for name in order(recipe, ["stage1"])[:-1]}
    whole, broken = (base.fork(tmp_path / name, recipe, shared) for name in ("whole", "broken"))
    train_step(whole, "stage1", 2)
    write_scripts(broken, load_site(site_file))
    script = broken.path / "slurm" / "stage1.sbatch"
    job = on_slurm.call("sbatch", "--parsable", str(script))  # by hand, as a user may
    log = broken.path / "06_stage1_modality_adaptation" / "model.partial" / "metrics.jsonl"
    for start in (1, 2):
        rows = len(read_metrics(log)) + random.randint(3, 12)
        on_slurm.wait_for(lambda: len(read_metrics(log)) >= rows, 120)  # noqa: B023
        urgent = ("sbatch", "--parsable", "-p", "urgent", "-N", "2", "--exclusive")
        on_slurm.call(*urgent, "-o", "/dev/null", "--wrap", "sleep 1")
        on_slurm.wait_for(lambda: restarts(on_slurm, job) >= start, 120)  # noqa: B023
    on_slurm.wait_until_empty(300)
    logs = [read_metrics(r.require("stage1").path / "metrics.jsonl") for r in (whole, broken)]
    steps = [[row["step"] for row in log] for log in logs]
    assert steps[0] == steps[1] == [*range(1, 81)], "every step once, and none left out"
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    assert broken.require("stage1").facts["resumed"]
    said = (broken.path / "slurm" / "logs" / f"stage1-{job}.log").read_text()
    assert said.count("the job goes on where it was") == 2


def test_a_limit_of_time_that_is_shorter_than_a_training(
    smoke_run, on_slurm, site_file, tmp_path
) -> None:
    """The least that Slurm knows is a minute."""
    more = {"steps": 300, "accumulation": 16, "precision": "no", "log_every": 1}
    values = {f"stage1.optimization.{name}": n for name, n in more.items()}
    recipe = load_recipe(smoke_run / "recipe.yaml", values)
    shared = {name: name for name in order(recipe, ["stage1"])[:-1]}
    run = Run.open(smoke_run, say=quiet).fork(tmp_path / "run", recipe, shared)
    limit = {"times": Times(training="1"), "signal_s": 15}
    site = load_site(site_file).model_copy(update=limit)
    write_scripts(run, site)
    job = on_slurm.call("sbatch", "--parsable", str(run.path / "slurm" / "stage1.sbatch"))
    on_slurm.wait_until_empty(600)
    steps = [row["step"] for row in read_metrics(run.require("stage1").path / "metrics.jsonl")]
    assert steps == [*range(1, 301)], "every step once, and none left out"
    said = (run.path / "slurm" / "logs" / f"stage1-{job}.log").read_text()
    assert said.count("the job goes on where it was") == restarts(on_slurm, job) >= 1
    assert "DUE TO TIME LIMIT" not in said, "it was in time each time"


def restarts(lab: SlurmLab, job: str) -> int:
    """How often a job was begun again."""
    found = lab.call("scontrol", "-o", "show", "job", job).split("Restarts=")
    return int(found[1].split()[0])


def test_doctor_looks_at_the_cluster_from_inside(
    copied, on_slurm, site_file, tmp_path, speechgpt
) -> None:
    site, words = load_site(site_file), ("doctor", "--on", "slurm", "--site", site_file, "--json")
    words += ("--run", copied.path, "--recipe", "small", "--set", f"data={tmp_path}")
    told = {check["name"]: check for check in json.loads(speechgpt(*words).stdout)}
    inside = {n: c for n, c in told.items() if n in WORDS}
    assert inside.keys() == WORDS.keys() and all(c["ok"] for c in inside.values()), inside
    assert inside["run directory, on nodes"]["found"] == "n1, n2"
    elsewhere = site.model_copy(update={"python": "/nowhere/python"})
    (bad,) = (c for c in check_cluster(copied.path, elsewhere) if not c.ok)
    assert bad.name == "environment, on nodes" and "/nowhere/python" in bad.found
    (bad,) = (c for c in check_cluster(copied.path, site, (tmp_path / "no",)) if not c.ok)
    assert bad.name == "data, on nodes" and bad.found.startswith("n1: ")
    wrong = check_cluster(copied.path, site.model_copy(update={"partition": "gpu"}))
    assert [c.found for c in wrong if not c.ok] == [
        "no partition 'gpu': this cluster has main, urgent"
    ]


def test_a_partition_that_there_is_not(copied, on_slurm, site_file) -> None:
    site = load_site(site_file).model_copy(update={"partition": "gpu"})
    with pytest.raises(UserError, match="no partition 'gpu': this cluster has main, urgent"):
        submit_missing(copied, site)
    assert "SLURM_JOB_ID" not in os.environ
