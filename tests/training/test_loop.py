"""The training loop: its schedule, exact resume, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.training.checkpoints import save_module
from speechgpt_lib.training.log import read_metrics
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.optimizers import MATRICES, learning_rate_at, make_optimizers
from speechgpt_lib.training.options import TrainingOptions
from tests.builders import few_steps, tiny_language_model, tiny_vocabulary


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


def fit(model, settings, work: Path, function=step_function, seed=0, name_rows=None, **options):
    """Train one model on `batch_at`."""
    task = Task({"model": model}, function, batch_at, name_rows=name_rows)
    return train(task, settings, work, TrainingOptions(seed, **options))


@pytest.mark.parametrize(
    "variable",
    [
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"},
        {"ACCELERATE_DYNAMO_BACKEND": "eager"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_USE_FSDP": "true"},
    ],
)
def test_the_environment_has_no_say_in_the_weights(tmp_path: Path, monkeypatch, variable) -> None:
    plain, other = fresh(), fresh()
    fit(plain, few_steps(5), tmp_path / "plain")
    for name, value in variable.items():  # set after the import, as a cell of a notebook may
        monkeypatch.setenv(name, value)
    fit(other, few_steps(5), tmp_path / "other")
    assert torch.equal(plain.weight, other.weight) and torch.equal(plain.bias, other.bias)
    assert not torch.equal(plain.weight, fresh().weight)


def test_an_earlier_training_has_no_say_in_the_device(tmp_path: Path, monkeypatch) -> None:
    """accelerate keeps the first device of a process for all that follow."""
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))
    model = fresh()
    fit(model, few_steps(2), tmp_path)
    assert model.weight.device.type == "cpu"


def test_learning_rate_warms_up_holds_and_decays() -> None:
    settings = few_steps(100, learning_rate=1.0, warmup=10, hold=0.4, floor=0.1)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[40] == 1.0
    assert all(a >= b for a, b in zip(rates[40:], rates[41:], strict=False))
    assert rates[-1] == pytest.approx(0.1)


@given(st.integers(1, 300), st.integers(0, 60), st.floats(0, 0.95), st.floats(0, 1), st.data())
def test_learning_rate_stays_between_floor_and_full(
    steps: int, warmup: int, hold: float, floor: float, data: st.DataObject
) -> None:
    settings = few_steps(steps, learning_rate=0.3, warmup=warmup, hold=hold, floor=floor)
    step = data.draw(st.integers(0, steps - 1))
    rate, after = learning_rate_at(step, settings), learning_rate_at(step + 1, settings)
    assert 0 < rate <= 0.3 or floor == 0
    if warmup <= step <= hold * steps:
        assert rate == 0.3
    # Beyond warm-up and plateau: down in a straight line, and never below the floor.
    if step >= max(warmup, hold * steps):
        straight = max(floor, (1 - step / steps) / (1 - hold)) * 0.3
        assert rate == pytest.approx(min(0.3, straight))
        assert after <= rate + 1e-12 and rate >= floor * 0.3 - 1e-12


def test_a_step_is_an_update_by_the_weighted_mean(tmp_path: Path) -> None:
    """`train` against the same thing written plainly: mean over what counts, clipped, AdamW."""

    def weighted(phase, modules, batch, step):
        x, y = batch
        weights = torch.arange(8.0)[:, None] * (step + 1)
        return ((modules["model"](x) - y).square() * weights).sum(), weights.sum(), {}

    settings = few_steps(5, learning_rate=0.05, warmup=3, clip=0.5)
    model, plain = fresh(), fresh()
    fit(model, settings, tmp_path, weighted)
    optimizer = torch.optim.AdamW(
        plain.parameters(), betas=settings.betas, weight_decay=settings.weight_decay
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    for step in range(5):
        x, y = batch_at(step, 0, 1)
        loss = (torch.arange(8.0)[:, None] * (plain(x) - y).square()).sum() / 28
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, settings)
        optimizer.step()
        assert rows[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert rows[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert rows[step]["lr"] == pytest.approx(learning_rate_at(step, settings), abs=1e-6)
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_training_learns_and_logs_every_step(tmp_path: Path) -> None:
    model = fresh()
    summary = fit(model, few_steps(60, learning_rate=0.1), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert summary["steps"] == 60 and summary["resumed_from"] == 0


@pytest.mark.parametrize("matrix_learning_rate", [None, 0.02])
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, matrix_learning_rate: float | None
) -> None:
    whole, halves = fresh(), fresh()
    settings = few_steps(20, learning_rate=0.01, matrix_learning_rate=matrix_learning_rate)
    fit(whole, settings, tmp_path / "whole", seed=3)

    def interrupt(row: dict) -> None:
        if row["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7; run it again to resume"):
        fit(halves, settings, tmp_path / "halves", seed=3, on_log=interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    halves = fresh()
    summary = fit(halves, settings, tmp_path / "halves", seed=3)
    assert summary["resumed_from"] == 7
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True)
    )
    assert [row["step"] for row in read_metrics(tmp_path / "halves" / "metrics.jsonl")] == list(
        range(1, 21)
    )


def test_muon_drives_matrices_between_layers_and_adamw_the_rest() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(5, 4), "inner": nn.Linear(4, 3), "lm_head": nn.Linear(3, 5)}
    )
    model["inner"].bias.requires_grad_(False)
    assert set(make_optimizers([model], few_steps(1))) == {""}
    both = make_optimizers([model], few_steps(1, learning_rate=0.1, matrix_learning_rate=0.3))
    held = {
        name: [id(p) for group in o.param_groups for p in group["params"]]
        for name, o in both.items()
    }
    assert held[MATRICES] == [id(model["inner"].weight)]
    assert held[""] == [
        id(p) for p in (model["table"].weight, model["lm_head"].weight, model["lm_head"].bias)
    ]
    assert both[MATRICES].param_groups[0]["scale"] == pytest.approx(3.0)


def to_the_end(folder: Path, on_log=None) -> bytes:
    model = fresh()
    fit(model, few_steps(40, save_every_s=0.01), folder, seed=1, on_log=on_log)
    save_module(model, folder / "final.safetensors")
    return (folder / "final.safetensors").read_bytes()


KILLED = """
import sys, time
from pathlib import Path
from tests.training.test_loop import to_the_end
to_the_end(Path(sys.argv[1]), lambda row: time.sleep(0.05))
"""


@pytest.mark.slow
def test_killed_with_sigkill_it_ends_in_the_same_weights(tmp_path: Path, root: Path) -> None:
    killed = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(killed)], cwd=root, env=environment
    )
    deadline = time.monotonic() + 120
    while (
        not list(killed.glob("checkpoints/step_*"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.kill()
    assert process.wait(30) == -signal.SIGKILL and not (killed / "final.safetensors").exists()
    assert list(killed.glob("checkpoints/step_*"))
    assert to_the_end(killed) == to_the_end(tmp_path / "whole")
    steps = [row["step"] for row in read_metrics(killed / "metrics.jsonl")]
    assert steps == list(range(1, 41))


def test_two_phases_drive_their_own_modules(tmp_path: Path) -> None:
    modules = {"a": fresh(), "b": fresh()}

    def phases(phase, modules, batch, step):
        if phase == "second" and step < 2:
            return None
        loss = modules["a" if phase == "first" else "b"](batch[0]).square()
        return loss.sum(), loss.numel(), {}

    task = Task(modules, phases, batch_at, {"first": ["a"], "second": ["b"]})
    train(task, few_steps(2, weight_decay=0.0), tmp_path, TrainingOptions(seed=0))
    assert torch.equal(modules["b"].weight, fresh().weight)
    assert not torch.equal(modules["a"].weight, fresh().weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_spares_the_last_good_weights(
    tmp_path: Path, bad: float
) -> None:
    def explode(phase, modules, batch, step):
        loss, weight, metrics = step_function(phase, modules, batch, step)
        return (loss * bad if step == 3 else loss), weight, metrics

    settings = few_steps(9, save_every_s=1e-6)
    with pytest.raises(UserError, match="loss of model became (nan|inf) at step 4.*learning rate"):
        fit(fresh(), settings, tmp_path / "bad", explode)
    cured, whole = fresh(), fresh()
    assert fit(cured, settings, tmp_path / "bad")["resumed_from"] == 3
    fit(whole, settings, tmp_path / "whole")
    assert torch.equal(cured.weight, whole.weight)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="meant for 2 process.*runs in 1"):
        fit(fresh(), few_steps(1), tmp_path, world_size=2)


def test_a_log_whose_last_line_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_every_third_step_is_logged_when_asked_and_the_last_always(tmp_path: Path) -> None:
    fit(fresh(), few_steps(7, log_every=3), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3, 6, 7]


def test_a_cosine_falls_from_the_full_rate_to_the_floor() -> None:
    settings = few_steps(100, learning_rate=1.0, warmup=10, hold=0.1, floor=0.1, schedule="cosine")
    rates = [learning_rate_at(step, settings) for step in range(101)]
    assert rates[10] == 1.0 and rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55), "half-way it has half of the way to go"
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_parts_one_after_the_other_are_the_whole_batch(tmp_path: Path, accumulation: int) -> None:
    """Unequal parts, weighted by what counts in them: the losses and weights of the whole batch."""

    def weighted(phase, modules, batch, step):
        x, y = batch
        weights = x.abs()[:, :1]
        return ((modules["model"](x) - y).square() * weights).sum(), weights.sum(), {}

    logs, weights = [], []
    for count in (1, accumulation):
        model = fresh()
        folder = tmp_path / str(count)
        fit(model, few_steps(6, learning_rate=0.05, accumulation=count), folder, weighted)
        logs.append(read_metrics(folder / "metrics.jsonl"))
        weights.append(model.weight.detach().clone())
    for one, several in zip(*logs, strict=True):
        for name in ("loss", "grad_norm"):
            assert several[name] == pytest.approx(one[name], abs=1e-5)
    assert torch.allclose(*weights, atol=1e-6)


def test_a_loss_that_is_no_number_stops_accumulation_too(tmp_path: Path) -> None:
    def broken(phase, modules, batch, step):
        loss = (modules["model"](batch[0]) - batch[1]).square().sum()
        return loss * (float("nan") if step == 2 else 1.0), 4, {}

    with pytest.raises(UserError, match="step 3"):
        fit(fresh(), few_steps(4, accumulation=2), tmp_path, broken)


def test_the_error_names_the_rows(tmp_path: Path) -> None:
    """Of a batch in parts, those of the part that went wrong."""

    def broken(phase, modules, batch, step):
        x, y = batch
        loss = (modules["model"](x) - y).square().sum()
        bad = step == 1 and torch.equal(x, batch_at(1, 1, 2)[0])
        return loss * (float("nan") if bad else 1.0), 4, {}

    asked = []

    def name_rows(step: int, rank: int, world_size: int) -> str:
        asked.append((step, rank, world_size))
        return "row asr-00012 (57 tokens)"

    message = r"at step 2 in .* \(row asr-00012 \(57 tokens\)\); the last good"
    with pytest.raises(UserError, match=message):
        fit(fresh(), few_steps(4, accumulation=2), tmp_path, broken, name_rows=name_rows)
    assert asked == [(1, 1, 2)]


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path) -> None:
    def steep(phase, modules, batch, step):
        loss = modules["model"](batch[0]).square().sum()
        bad = loss + (0 * loss).sqrt()  # the square root of 0 has an infinite slope
        return bad if step == 2 else loss, 4, {}

    model = fresh()
    with pytest.raises(UserError, match="gradient of model became nan at step 3"):
        fit(model, few_steps(4), tmp_path, steep)
    assert model.weight.isfinite().all()


def test_a_batch_that_finds_no_memory_says_what_to_change(tmp_path: Path) -> None:
    def greedy(phase, modules, batch, step):
        if step == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return step_function(phase, modules, batch, step)

    settings = few_steps(5, save_every_s=1e-6)
    cures = "tokens_per_batch.*checkpointing.*sharding"
    with pytest.raises(UserError, match=f"batch of step 3 does not fit into memory.*{cures}"):
        fit(fresh(), settings, tmp_path, greedy)
    assert fit(fresh(), settings, tmp_path)["resumed_from"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++, which is not here")
def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    """The same losses, the same names of weights, and afterwards the model is as it was."""
    logs = []
    for compiled in (False, True):
        model = CausalLoss(tiny_language_model(tiny_vocabulary()))
        names, folder = list(model.state_dict()), tmp_path / str(compiled)

        def score(phase, modules, batch, step):
            loss, weight = modules["model"](batch, torch.ones(batch.shape))
            return loss, weight, {}

        def ids_at(step, rank, world_size):
            generator = torch.Generator().manual_seed(step)
            return torch.randint(3, 300, (4, 16 + step), generator=generator)

        task, settings = Task({"model": model}, score, ids_at), few_steps(3, compile=compiled)
        train(task, settings, folder, TrainingOptions(seed=0))
        logs.append([row["loss"] for row in read_metrics(folder / "metrics.jsonl")])
        assert list(model.state_dict()) == names
        assert all(layer._compiled_call_impl is None for layer in model.model.model.layers)
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)


def test_a_clock_that_runs_out_stops_and_saves(tmp_path: Path) -> None:
    """Stopped by the clock again and again, it ends in the weights of a training without one."""
    whole = fresh()
    fit(whole, few_steps(5), tmp_path / "whole")
    for turn in range(5):
        model = fresh()
        settings = few_steps(5, most_hours=1e-9)
        if turn == 4:
            fit(model, settings, tmp_path / "short")
        else:
            with pytest.raises(KeyboardInterrupt, match=f"after step {turn + 1}"):
                fit(model, settings, tmp_path / "short")
    assert torch.equal(whole.weight, model.weight)
    rows = read_metrics(tmp_path / "short" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_the_log_says_how_long_it_will_take(tmp_path: Path) -> None:
    summary = fit(fresh(), few_steps(4), tmp_path)
    left = [row["seconds_left"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert left[-1] == 0 and all(each > 0 for each in left[:-1]) and "seconds_left" not in summary
