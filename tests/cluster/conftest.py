"""A cluster for tests, one for each process of pytest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from speechgpt_lib.cluster import jobs
from speechgpt_lib.runs.run import Run
from tests.cluster.slurm_lab import SlurmLab, missing, written_site


@pytest.fixture(scope="session")
def slurm_lab(tmp_path_factory: pytest.TempPathFactory):
    """A real Slurm of two nodes; without one tests are skipped, or fail where it is required."""
    if lacking := missing():
        what = f"no Slurm here ({', '.join(lacking)}): apt-get install slurm-wlm munge"
        if "slurm" in os.environ.get("SPEECHGPT_REQUIRE", ""):
            pytest.fail(what)
        pytest.skip(what)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    folder = tmp_path_factory.mktemp("slurm")
    lab = SlurmLab(folder, port=26_800 + 600 * worker).start()
    yield lab
    lab.stop()


@pytest.fixture
def on_slurm(slurm_lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    """That cluster, for commands of this process too; left empty."""
    slurm_lab.lead_here(monkeypatch)
    yield slurm_lab
    slurm_lab.call("scancel", "-u", slurm_lab.call("id", "-un"), check=False)
    slurm_lab.wait_until_empty(60)


@pytest.fixture
def site_file(root: Path, tmp_path: Path) -> Path:
    """A site file for it."""
    return written_site(tmp_path, root)


@pytest.fixture
def steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No jobs of notebooks, which take long and have their own test."""
    monkeypatch.setattr(jobs, "find_notebooks", lambda: [])


@pytest.fixture
def copied(smoke_run: Path, steps_alone: None, tmp_path: Path) -> Run:
    """A run in which every step is finished."""
    shutil.copytree(smoke_run, tmp_path / "run")
    return Run.open(tmp_path / "run", say=lambda line: None)
