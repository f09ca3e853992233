"""FSDP2 for real, in two processes on the CPU: the losses of one, checkpoints for any number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.log import read_metrics
from tests.builders import files_limited_to

ROOT = Path(__file__).parents[2]
FULL = {"sharding": "full"}


def run(
    folder: Path, steps: int, processes: int, stop_at: int = 0, settings: dict = FULL
) -> list[dict]:
    """Train in so many processes; returns the metrics log of the folder."""
    done = launch(folder, steps, processes, stop_at, settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_metrics(folder / "metrics.jsonl")


def launch(
    folder: Path, steps: int, processes: int, stop_at: int = 0, settings: dict = FULL
) -> subprocess.CompletedProcess:
    arguments = [str(folder), str(steps), str(processes), str(stop_at), json.dumps(settings)]
    command = [sys.executable, "-m", "tests.training.sharded_worker", *arguments]
    if processes > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command[2:2] = [*launcher, "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    return subprocess.run(command, **options, timeout=300)


def same_losses(found: list[dict], wanted: list[dict]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5), row["step"]
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4), row["step"]


def same_weights(folder: Path, other: Path) -> None:
    a, b = load_file(folder / "trained.safetensors"), load_file(other / "trained.safetensors")
    assert a.keys() == b.keys()
    # Adam divides by the gradient's size, so rounding moves a weight whose gradient is almost
    # nothing; a step is 3e-3 at most.
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 5e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The same training in one process, unsharded."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, 8, 1, settings={})


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in two processes, stopped at its fourth step."""
    folder = tmp_path_factory.mktemp("begun")
    assert [row["step"] for row in run(folder, 8, 2, stop_at=4)] == [1, 2, 3, 4]
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00000004"]
    return folder


@pytest.fixture
def stopped(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test alone."""
    return shutil.copytree(begun, tmp_path / "stopped")


@pytest.mark.slow
def test_two_sharded_processes_are_one(tmp_path: Path, alone) -> None:
    same_losses(run(tmp_path, 8, 2), alone[1])
    same_weights(tmp_path, alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_in_two_it_goes_on_in_any_number(stopped: Path, alone, processes: int) -> None:
    same_losses(run(stopped, 8, processes), alone[1])
    same_weights(stopped, alone[0])


@pytest.mark.slow
def test_each_process_writes_its_part_and_a_damaged_one_is_passed_over(
    stopped: Path, alone
) -> None:
    run(stopped, 8, 2, stop_at=6)
    newest = stopped / "checkpoints" / "step_00000006"
    state = json.loads((newest / "state.json").read_text())
    first, second = sorted(newest.glob("shard-*.safetensors"))
    assert {p.name for p in (first, second)} == state["files"].keys() and state["step"] == 6
    sizes = [path.stat().st_size for path in (first, second)]
    assert max(sizes) < 1.2 * min(sizes), "nobody writes all"
    second.write_bytes(second.read_bytes()[:-1] + b"\x01")
    done = launch(stopped, 8, 2)
    assert "step_00000006 is damaged (its files do not match" in done.stderr
    assert "step_00000006 is damaged (so another process found)" in done.stderr
    same_losses(read_metrics(stopped / "metrics.jsonl"), alone[1])
    same_weights(stopped, alone[0])


@pytest.mark.slow
def test_a_full_disk_keeps_the_parts_before(stopped: Path, alone) -> None:
    with files_limited_to(20_000):
        done = launch(stopped, 8, 2, stop_at=6)
    assert done.returncode != 0 and "could not write its part of checkpoint" in done.stderr
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step_00000004"]
    same_losses(run(stopped, 8, 1), alone[1])


@pytest.mark.slow
def test_begun_in_one_it_goes_on_sharded(tmp_path: Path, alone) -> None:
    run(tmp_path, 8, 1, stop_at=3)
    same_losses(run(tmp_path, 8, 2), alone[1])


@pytest.mark.slow
def test_accumulation_in_two_processes_is_the_whole_batch(tmp_path: Path, alone) -> None:
    same_losses(run(tmp_path / "sharded", 8, 2, settings=FULL | {"accumulation": 2}), alone[1])
    same_losses(run(tmp_path / "whole", 8, 2, settings={"accumulation": 4}), alone[1])


def test_muon_is_not_sharded() -> None:
    with pytest.raises(ValidationError, match="Muon needs whole matrices"):
        Optimization(steps=1, learning_rate=1.0, matrix_learning_rate=1.0, sharding="full")
