"""The graph as jobs, and their scripts; no Slurm is needed to look at them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from speechgpt_lib.cluster import slurm
from speechgpt_lib.cluster.jobs import ClusterJob, jobs_of
from speechgpt_lib.cluster.script import render
from speechgpt_lib.cluster.site import Array, Site
from speechgpt_lib.cluster.submit import submit_missing, write_scripts
from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import STEPS, make_all, order
from speechgpt_lib.pipeline.worker import place_by_slurm
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.names import NOTEBOOKS
from speechgpt_lib.runs.run import Run

SITE = Site(array=Array(tasks=3))


def run_of(folder: Path, recipe: str = "smoke", **changes: object) -> Run:
    return Run.create(folder, load_recipe(recipe, changes), say=lambda line: None)


def by_name(run: Run, site: Site = SITE) -> dict[str, ClusterJob]:
    return {job.name: job for job in jobs_of(run, site)}


def test_every_step_and_notebook_has_a_job_after_what_it_needs(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    jobs = by_name(run)
    steps = {job.step for job in jobs.values() if job.step}
    assert steps == set(order(run.recipe))
    assert [n for n in jobs if n.startswith("notebook")] == [f"notebook-{n[:2]}" for n in NOTEBOOKS]
    seen: list[str] = []
    for name, job in jobs.items():
        assert set((*job.needs, *job.after)) <= set(seen), name
        seen.append(name)
    assert "chain_set-parts" not in jobs, "without dialogues it is one shard"
    assert jobs["units-parts"].parts == 3 and jobs["units"].needs == ("units-parts",)
    assert jobs["vocoder"].kind == "training" and jobs["vocoder"].nodes == 1
    assert set(jobs["notebook-07"].needs) == {"stage2", "vocoder", "minimal_pairs"}
    assert jobs["notebook-07"].after == ("notebook-06",)


def test_a_training_takes_as_many_nodes_as_its_processes_need(tmp_path: Path) -> None:
    jobs = by_name(run_of(tmp_path, processes=6), Site(gpus_per_node=4))
    assert (jobs["stage1"].nodes, jobs["stage1"].ranks) == (2, 3), "six tasks, not eight"
    assert jobs["stage1"].command[:2] == ("-m", "speechgpt_lib.pipeline.worker")
    assert (jobs["corpus"].nodes, jobs["corpus"].ranks, jobs["corpus"].gpu) == (1, 1, False)


@pytest.mark.slow
def test_what_is_finished_needs_no_job(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    make_all(run, ["text_model"])
    jobs = by_name(run)
    assert "text_model" not in jobs and jobs["expanded_model"].needs == ("inventory",)


@pytest.mark.parametrize("parts", [0, 3])
@pytest.mark.parametrize("kind", ["training", "array", "step", "notebook"])
def test_a_script_is_one_that_a_shell_reads(tmp_path: Path, kind, parts) -> None:
    given = {"setup": ["module load x"], "container": "apptainer exec 'my image.sif'"}
    given |= {"scratch": "/tmp/a b", "options": ["--exclusive"], "memory_gb": 2.5, "account": "us"}
    site = Site(**given, gpus_per_node=4)
    command = ("-m", "x", "it's", f"$SLURM_ARRAY_TASK_ID::{parts}")
    job = ClusterJob("a-job", kind, command, nodes=2, ranks=2, gpu=True, parts=parts)
    file = tmp_path / "a-job.sbatch"
    file.write_text(render(job, site, tmp_path))
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    lines = file.read_text().splitlines()
    assert {"#SBATCH --account=us", "#SBATCH --mem=2.5G", "#SBATCH --exclusive"} <= set(lines)
    assert "#SBATCH --gpus-per-node=2" in lines and "module load x" in lines
    assert ("#SBATCH --array=0-2" in lines) == (parts == 3)
    assert ("#SBATCH --signal=USR1@120" in lines) == (kind == "training")
    assert lines.index("module load x") > max(k for k, s in enumerate(lines) if "#SBATCH" in s)
    echo = [line.removeprefix("srun --kill-on-bad-exit=1 ") for line in lines if "srun" in line][0]
    said = subprocess.run(
        ["bash", "-c", f"SLURM_ARRAY_TASK_ID=7; printf '%s\\n' {echo}"],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert said[:3] == ["apptainer", "exec", "my image.sif"] and said[-2:] == [
        "it's",
        f"7::{parts}",
    ]


def test_the_largest_recipe_in_scripts(tmp_path: Path) -> None:
    """60,000 hours on 96 GPUs, of which nothing is at hand here."""
    site = Site(gpus_per_node=8, array=Array(tasks=1000, at_once=200))
    run = run_of(tmp_path, "paper", data=str(tmp_path / "nowhere"))
    jobs = {job.name: job for job in write_scripts(run, site)}
    assert jobs["units-parts"].parts == jobs["chain_set-parts"].parts == 1000
    assert jobs["stage1"].nodes * jobs["stage1"].ranks == run.recipe.processes == 96
    script = (tmp_path / "slurm" / "units-parts.sbatch").read_text()
    assert "#SBATCH --array=0-999%200" in script
    assert {job.step for job in jobs.values() if job.step} <= set(STEPS)


def test_without_slurm_it_says_where_to_go(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no sinfo here, so no Slurm: .*login node"):
        submit_missing(run_of(tmp_path), SITE)


def test_a_job_submits_no_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(UserError, match="this is job 17 of Slurm, and a job submits no others"):
        submit_missing(run_of(tmp_path), SITE)


@pytest.fixture
def told(monkeypatch) -> list[list[str]]:
    """Slurm's commands as they would be called; the fifth job is refused."""
    calls: list[list[str]] = []

    def call(*command: str) -> str:
        calls.append(list(command))
        submitted = sum(c[0] == "sbatch" for c in calls)
        if command[0] == "sbatch" and submitted == 5:
            raise UserError("sbatch refused: QOSMaxSubmitJobPerUserLimit")
        return {"sinfo": "main*\nbig", "squeue": "", "scontrol": "MaxArraySize = 101"}.get(
            command[0], f"{submitted}\n"
        )

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(slurm, "call", call)
    return calls


def test_a_refused_job_takes_those_before_it_back(tmp_path: Path, told) -> None:
    run = run_of(tmp_path)
    message = "QOSMaxSubmitJobPerUserLimit; 4 jobs submitted before are cancelled"
    with pytest.raises(UserError, match=message):
        submit_missing(run, SITE)
    assert told[-1] == ["scancel", "1", "2", "3", "4"]
    assert not (run.path / "slurm" / "jobs.json").exists()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(partition="gpu"), "no partition 'gpu': this cluster has main, big"),
        (Site(array=Array(tasks=500)), "array.tasks is 500, this cluster allows 100 at most"),
    ],
)
def test_what_a_cluster_does_not_have(tmp_path: Path, told, site: Site, message: str) -> None:
    with pytest.raises(UserError, match=message):
        submit_missing(run_of(tmp_path), site)
    assert not any(command[0] == "sbatch" for command in told)


def test_as_json(tmp_path: Path, capsys) -> None:
    from speechgpt_lib.cli.runs import run_recipe

    run_recipe("smoke", tmp_path, on="slurm", dry_run=True, as_json=True)
    found = json.loads(capsys.readouterr().out)["jobs"]
    assert found[0]["name"] == "corpus" and found[0]["kind"] == "step"
    for given, message in (
        ({"on": "pbs"}, "only slurm is known"),
        ({"site": tmp_path / "site.yaml"}, "--site is for --on slurm"),
        ({"on": "slurm", "only": "03"}, "--only is not for --on slurm"),
        ({"on": "slurm", "force": True}, "--force is not for --on slurm"),
    ):
        with pytest.raises(UserError, match=message):
            run_recipe("smoke", tmp_path / "other", dry_run=True, **given)
    assert not (tmp_path / "other").exists()


def test_a_task_of_srun_finds_its_place(monkeypatch) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    slurms = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
    for name, value in zip(slurms, ("5", "2", "6", "3"), strict=True):
        monkeypatch.setenv(name, value)
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set below is gone afterwards
        monkeypatch.delenv(name)
    place_by_slurm(1)
    assert not any(name in os.environ for name in names), "one process needs no place"
    place_by_slurm(6)
    assert [os.environ[name] for name in names] == ["5", "2", "6", "3"]
    monkeypatch.setenv("RANK", "0")
    place_by_slurm(6)
    assert os.environ["RANK"] == "0", "a launcher has said it"
