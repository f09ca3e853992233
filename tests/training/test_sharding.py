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
from tests.training.sharded_worker import train_in

ROOT = Path(__file__).parents[2]
FULL = {"sharding": "full"}


def run(folder: Path, processes: int, stop_at: int = 0, settings: dict = FULL) -> list[dict]:
    """Train in so many processes; returns the metrics log of the folder."""
    if processes == 1:
        train_in(folder, 1, stop_at, settings)
    else:
        done = launch((folder, stop_at, settings))
        assert done.returncode == 0, done.stderr[-3000:]
    return read_metrics(folder / "metrics.jsonl")


def launch(*trainings: tuple[Path, int, dict]) -> subprocess.CompletedProcess:
    """Two processes that do these trainings, one after the other."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = json.dumps([(str(folder), *more) for folder, *more in trainings])
    command = [sys.executable, "-m", *launcher, "-m", "tests.training.sharded_worker", "2", given]
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
    return folder, run(folder, 1, settings={})


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trainings of two processes, which take seconds to start: a sharded one, one
    that was stopped, and two whose steps have parts, sharded and not."""
    folder = tmp_path_factory.mktemp("together")
    done = launch(
        (folder / "sharded", 0, FULL),
        (folder / "stopped", 4, FULL),
        (folder / "accumulated", 0, FULL | {"accumulation": 2}),
        (folder / "whole", 0, {"accumulation": 4}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def copy_of_the_stopped(together: Path, folder: Path) -> Path:
    shutil.copytree(together / "stopped", folder)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00000004"]
    return folder


@pytest.fixture(scope="module")
def resumed(together: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trainings that went on in two other processes: one that was stopped, one that
    was stopped again, and one that one process had begun."""
    folder = tmp_path_factory.mktemp("resumed")
    run(folder / "begun in one", 1, stop_at=3)
    done = launch(
        (copy_of_the_stopped(together, folder / "stopped"), 0, FULL),
        (copy_of_the_stopped(together, folder / "stopped again"), 6, FULL),
        (folder / "begun in one", 0, FULL),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_two_sharded_processes_are_one(together: Path, alone) -> None:
    same_losses(read_metrics(together / "sharded" / "metrics.jsonl"), alone[1])
    same_weights(together / "sharded", alone[0])


@pytest.mark.slow
def test_stopped_in_two_it_goes_on_in_any_number(together: Path, resumed, tmp_path, alone) -> None:
    run(copy_of_the_stopped(together, tmp_path / "in one"), 1)
    for folder in (tmp_path / "in one", resumed / "stopped"):
        same_losses(read_metrics(folder / "metrics.jsonl"), alone[1])
        same_weights(folder, alone[0])


@pytest.mark.slow
def test_each_process_writes_its_part_and_a_damaged_one_is_passed_over(resumed, alone) -> None:
    stopped = resumed / "stopped again"
    newest = stopped / "checkpoints" / "step_00000006"
    state = json.loads((newest / "state.json").read_text())
    first, second = sorted(newest.glob("shard-*.safetensors"))
    assert {p.name for p in (first, second)} == state["files"].keys() and state["step"] == 6
    sizes = [path.stat().st_size for path in (first, second)]
    assert max(sizes) < 1.2 * min(sizes), "nobody writes all"
    second.write_bytes(second.read_bytes()[:-1] + b"\x01")
    done = launch((stopped, 0, FULL))
    assert "step_00000006 is damaged (its files do not match" in done.stderr
    assert "step_00000006 is damaged (so another process found)" in done.stderr
    same_losses(read_metrics(stopped / "metrics.jsonl"), alone[1])
    same_weights(stopped, alone[0])


@pytest.mark.slow
def test_a_full_disk_keeps_the_parts_before(together: Path, tmp_path: Path, alone) -> None:
    stopped = copy_of_the_stopped(together, tmp_path / "stopped")
    with files_limited_to(20_000):
        done = launch((stopped, 6, FULL))
    assert done.returncode != 0 and "could not write its part of checkpoint" in done.stderr
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step_00000004"]
    same_losses(run(stopped, 1), alone[1])


@pytest.mark.slow
def test_begun_in_one_it_goes_on_sharded(resumed: Path, alone) -> None:
    same_losses(read_metrics(resumed / "begun in one" / "metrics.jsonl"), alone[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accumulated", "whole"])
def test_accumulation_in_two_processes_is_the_whole_batch(together: Path, alone, name: str) -> None:
    same_losses(read_metrics(together / name / "metrics.jsonl"), alone[1])


def test_muon_is_not_sharded() -> None:
    with pytest.raises(ValidationError, match="Muon needs whole matrices"):
        Optimization(steps=1, learning_rate=1.0, matrix_learning_rate=1.0, sharding="full")
