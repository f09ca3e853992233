"""The training that notebook 10 has taken away: recorded where no cluster is, else for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechgpt_lib.cluster import lesson, slurm
from speechgpt_lib.cluster.lesson import interrupted_training
from speechgpt_lib.cluster.site import Site, load_site
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.training_figures import draw_attempts
from speechgpt_lib.pipeline.graph import order
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run

FEW = {"steps": 40, "log_every": 1, "accumulation": 4, "precision": "no"}


def test_without_a_cluster_it_is_recorded_and_says_so(tmp_path: Path, monkeypatch) -> None:
    run = Run.create(tmp_path / "run", load_recipe("smoke"), say=lambda line: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    story = interrupted_training(run, "stage1", 20, Site())
    assert story.where.startswith("recorded on ") and "there is no sinfo here" in story.where
    steps = [row["step"] for row in story.log]
    assert steps == [*range(1, 61)] and any("goes on where it was" in line for line in story.said)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    inside = interrupted_training(run, "stage1", 20, Site())
    assert inside.log == story.log and "this is job 7 of Slurm" in inside.where
    figure = draw_attempts(story.log)
    first, second, requeued = figure.axes[0].lines
    assert [*first.get_xdata(), *second.get_xdata()] == steps
    assert requeued.get_xdata()[0] == second.get_xdata()[0] - 0.5


def test_a_job_that_gets_no_place_is_given_up_and_leaves_the_queue(tmp_path, monkeypatch) -> None:
    run = Run.create(tmp_path / "run", load_recipe("smoke"), say=lambda line: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    cancelled: list[str] = []
    plays = {
        "check_partition": lambda name: None,
        "submit": lambda script, after: "5",
        "states": lambda ids: {"5": ["PENDING"]},
        "reason": lambda job: "Resources",
        "cancel": cancelled.extend,
    }
    for name, play in plays.items():
        monkeypatch.setattr(slurm, name, play)
    monkeypatch.setattr(lesson, "PATIENCE_S", 0.0)
    with pytest.raises(UserError, match=r"job 5 is still \['PENDING'\]: Resources"):
        interrupted_training(run, "stage1", 20, Site())
    assert cancelled == ["5"]


@pytest.mark.slow
def test_on_a_cluster_it_is_real(smoke_run, on_slurm, site_file, tmp_path) -> None:
    recipe = load_recipe(
        smoke_run / "recipe.yaml", {f"stage1.optimization.{name}": n for name, n in FEW.items()}
    )
    run = Run.open(smoke_run, say=lambda line: None)
    needed = {name: name for name in order(run.recipe, ["stage1"])[:-1]}
    forked = run.fork(tmp_path / "run", recipe, needed)
    story = interrupted_training(forked, "stage1", 5, load_site(site_file))
    assert not story.where.startswith("recorded") and "slurm" in story.where
    assert [row["step"] for row in story.log] == [*range(1, 41)]
    assert sum("the job goes on where it was" in line for line in story.said) == 1
