"""Runs on a real Slurm of two nodes: nothing is lost or made twice, and results are the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from speechgpt_lib.cluster.site import load_site
from speechgpt_lib.cluster.status import status
from speechgpt_lib.cluster.submit import cancel_all, submit_missing
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.run import Run
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


def without_notebooks(lab: SlurmLab, new: dict[str, str]) -> None:
    """They take long, and have their own test."""
    lab.call("scancel", *(job for name, job in new.items() if name.startswith("notebook")))


@pytest.fixture
def copied(smoke_run: Path, tmp_path: Path) -> Run:
    """A run in which everything is finished."""
    shutil.copytree(smoke_run, tmp_path / "run")
    return Run.open(tmp_path / "run", say=quiet)


def test_all_notebooks_on_two_nodes(smoke_run, on_slurm, site_file, tmp_path, speechgpt) -> None:
    words = ("run", "--recipe", "smoke", "--run-dir", tmp_path / "run", "--on", "slurm")
    words += ("--site", site_file, "--json")
    first = json.loads(speechgpt(*words).stdout)
    assert len(first["submitted"]) > 25 and not first["queued"]
    again = json.loads(speechgpt(*words).stdout)
    assert not again["submitted"], "what waits in the queue is not submitted twice"
    on_slurm.wait_until_empty(1500)
    told = speechgpt("status", tmp_path / "run", "--json").stdout
    assert {job["name"]: job["state"] for job in json.loads(told)} == dict.fromkeys(
        first["submitted"], "done"
    ), told
    local, here = (Run.open(p, say=quiet) for p in (smoke_run, tmp_path / "run"))
    assert hashes(here) == hashes(local)
    nothing = speechgpt(*words[:-1]).stdout
    assert "all of it is finished" in nothing


def test_a_part_that_fails_is_tried_again(copied, on_slurm, site_file, tmp_path) -> None:
    flaky = tmp_path / "flaky.sh"
    flaky.write_text(
        '#!/bin/bash\nif [ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]\n'
        'then echo "error: lost its disk" >&2; exit 3; fi\nexec "$@"\n'
    )
    flaky.chmod(0o755)
    site = load_site(site_file).model_copy(update={"container": str(flaky)})
    before = hashes(copied)
    shutil.rmtree(copied.require("units").path)
    new, _ = submit_missing(copied, site)
    assert {n for n in new if not n.startswith("notebook")} == {"units-parts", "units"}
    without_notebooks(on_slurm, new)
    on_slurm.wait_until_empty(300)
    assert hashes(copied) == before and states(copied)["units"] == "done"
    logs = copied.path / "slurm" / "logs"
    tried = (logs / f"units-parts-{new['units-parts']}_1.log").read_text()
    assert "error: lost its disk" in tried and "tried again (1 of 2 times)" in tried
    other = (logs / f"units-parts-{new['units-parts']}_0.log").read_text()
    assert "tried again" not in other


def test_a_killed_job_is_told_and_only_it_is_submitted_again(copied, on_slurm, site_file) -> None:
    before, site = hashes(copied), load_site(site_file)
    for name in ("units", "cross_modal_set"):
        shutil.rmtree(copied.require(name).path)
    new, _ = submit_missing(copied, site)
    without_notebooks(on_slurm, new)
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
    without_notebooks(on_slurm, again)
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


def test_a_partition_that_there_is_not(copied, on_slurm, site_file) -> None:
    site = load_site(site_file).model_copy(update={"partition": "gpu"})
    with pytest.raises(UserError, match="no partition 'gpu': this cluster has main, urgent"):
        submit_missing(copied, site)
    assert "SLURM_JOB_ID" not in os.environ
