"""A cluster for tests, one for each process of pytest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from speechgpt_lib.runs.run import Run
from tests.cluster.slurm_lab import SlurmLab, missing


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
    for name, value in slurm_lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield slurm_lab
    slurm_lab.call("scancel", "-u", slurm_lab.call("id", "-un"), check=False)
    slurm_lab.wait_until_empty(60)


@pytest.fixture
def site_file(root: Path, tmp_path: Path) -> Path:
    """A site file for it."""
    file = tmp_path / "site.yaml"
    file.write_text(
        "cpus: 1\nsignal_s: 5\narray: {tasks: 2, retries: 2}\n"
        f"setup: ['export PYTHONPATH={root} OMP_NUM_THREADS=1']\n"
    )
    return file


@pytest.fixture
def copied(smoke_run: Path, tmp_path: Path) -> Run:
    """A run in which everything is finished."""
    shutil.copytree(smoke_run, tmp_path / "run")
    return Run.open(tmp_path / "run", say=lambda line: None)
