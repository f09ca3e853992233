"""The training loop: its schedule, exact resume, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from speechgpt_lib.errors import UserError
from speechgpt_lib.training.checkpoints import load_checkpoint, load_module, save_checkpoint, save_module
from speechgpt_lib.training.loop import learning_rate_at, read_metrics, train
from tests.builders import few_steps


def step_function(phase, modules, batch, step):
    x, y = batch
    loss = (modules["model"](nn.functional.dropout(x, 0.1)) - y).square()
    return loss.sum(), loss.numel(), {}


def batch_at(step, rank, world_size):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=generator)
    return x[rank::world_size], x.sum(1, keepdim=True)[rank::world_size]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    settings = few_steps(100, learning_rate=1.0, warmup=10, hold=0.4, floor=0.1)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[40] == 1.0
    assert all(a >= b for a, b in zip(rates[40:], rates[41:], strict=False)) and rates[-1] == pytest.approx(0.1)


def test_training_learns_and_logs_every_step(tmp_path: Path) -> None:
    model = fresh()
    summary = train({"model": model}, step_function, batch_at, few_steps(60, learning_rate=0.1), tmp_path, seed=0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 61)) and rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert summary["steps"] == 60 and summary["resumed_from"] == 0


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, halves = fresh(), fresh()
    settings = few_steps(20, learning_rate=0.01)
    train({"model": whole}, step_function, batch_at, settings, tmp_path / "whole", seed=3)

    def interrupt(row: dict) -> None:
        if row["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train({"model": halves}, step_function, batch_at, settings, tmp_path / "halves", seed=3, on_log=interrupt)
    halves = fresh()
    summary = train({"model": halves}, step_function, batch_at, settings, tmp_path / "halves", seed=3)
    assert summary["resumed_from"] == 7
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True))
    assert [row["step"] for row in read_metrics(tmp_path / "halves" / "metrics.jsonl")] == list(range(1, 21))


KILLED = """
import sys, time
from pathlib import Path
from tests.training.test_loop import batch_at, few_steps, fresh, step_function
from speechgpt_lib.training.checkpoints import save_module
from speechgpt_lib.training.loop import train
slow = lambda row: time.sleep(0.02)
model = fresh()
train({"model": model}, step_function, batch_at, few_steps(40, save_every_s=0.01), Path(sys.argv[1]), seed=1, on_log=slow)
save_module(model, Path(sys.argv[1]) / "final.safetensors")
"""


@pytest.mark.slow
def test_killed_with_sigkill_it_ends_in_the_same_weights(tmp_path: Path, root: Path) -> None:
    def start(folder: Path) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(root)}
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=root, env=environment)

    assert start(tmp_path / "whole").wait(120) == 0
    process = start(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("killed/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(30)
    assert not (tmp_path / "killed" / "final.safetensors").exists()
    assert start(tmp_path / "killed").wait(120) == 0
    assert (tmp_path / "killed" / "final.safetensors").read_bytes() == (tmp_path / "whole" / "final.safetensors").read_bytes()


def test_two_phases_drive_their_own_modules(tmp_path: Path) -> None:
    modules = {"a": fresh(), "b": fresh()}

    def phases(phase, modules, batch, step):
        if phase == "second" and step < 2:
            return None
        loss = modules["a" if phase == "first" else "b"](batch[0]).square()
        return loss.sum(), loss.numel(), {}

    drive = {"first": ["a"], "second": ["b"]}
    train(modules, phases, batch_at, few_steps(2, weight_decay=0.0), tmp_path, seed=0, phases=drive)
    assert torch.equal(modules["b"].weight, fresh().weight) and not torch.equal(modules["a"].weight, fresh().weight)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    def explode(phase, modules, batch, step):
        loss, weight, metrics = step_function(phase, modules, batch, step)
        return (loss * float("nan") if step == 3 else loss), weight, metrics

    with pytest.raises(UserError, match="step 4.*learning rate"):
        train({"model": fresh()}, explode, batch_at, few_steps(9), tmp_path, seed=0)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="meant for 2 process.*runs in 1"):
        train({"model": fresh()}, step_function, batch_at, few_steps(1), tmp_path, seed=0, world_size=2)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, 5, {"m": model}, {"o": optimizer})
    with torch.no_grad():
        model.weight.add_(1)
    newest = save_checkpoint(tmp_path, 9, {"m": model}, {"o": optimizer})
    (newest / "m.safetensors").write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path, {"m": model}, {"o": optimizer}) == 5
    assert torch.equal(model.weight, fresh().weight)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model = fresh()
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, {"m": model}, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_weights_of_another_shape_or_none_are_refused_by_name(tmp_path: Path) -> None:
    save_module(nn.Linear(4, 2), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="shape"):
        load_module(nn.Linear(4, 1), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        load_module(nn.Sequential(nn.Linear(4, 2)), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="missing"):
        load_module(fresh(), tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable"):
        load_module(fresh(), tmp_path / "bad.safetensors")
