"""The metrics log: lines of JSON, the same as TensorBoard's events, tokens counted over stops."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import nn

from speechgpt_lib.training.log import BOARD, MetricsLog, read_metrics
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from tests.builders import few_steps, files_limited_to


def step_function(phase, modules, batch, step):
    loss = modules["model"](batch).square()
    return loss.sum(), loss.numel(), {"tokens": 10 + step, "accuracy": torch.tensor(0.25)}


def batch_at(step, rank, world_size):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))[rank::world_size]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def fit(model: nn.Module, settings, work: Path, on_log=None, flops_per_token: float = 0.0) -> dict:
    task = Task({"model": model}, step_function, batch_at, flops_per_token=flops_per_token)
    return train(task, settings, work, TrainingOptions(seed=0, on_log=on_log))


def events_of(folder: Path) -> list[Event]:
    """All events, the first attempt's first.

    A record is a length (8 bytes), its checksum (4), the event, its checksum (4).
    """
    events = []
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_tensorboard_gets_what_the_lines_hold(tmp_path: Path) -> None:
    fit(fresh(), few_steps(3), tmp_path, flops_per_token=1e6)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    wanted = "loss lr grad_norm accuracy tokens tokens_per_second mfu memory_mb seconds_left"
    assert rows[0].keys() >= set(wanted.split())
    found: dict[int, dict[str, float]] = {}
    for event in events_of(tmp_path / BOARD):
        for value in event.summary.value:
            found.setdefault(event.step, {})[value.tag] = value.simple_value
    for row in rows:
        assert found[row.pop("step")] == pytest.approx(row, rel=1e-6)


def test_tokens_add_up_over_steps_parts_and_stops(tmp_path: Path) -> None:
    """Each part of a batch brings its own; what was counted before a stop is not lost."""

    def stop(row: dict) -> None:
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = few_steps(6, accumulation=2)
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), settings, tmp_path, stop)
    summary = fit(fresh(), settings, tmp_path)
    expected = [2 * sum(10 + k for k in range(step + 1)) for step in range(6)]
    assert [row["tokens"] for row in read_metrics(tmp_path / "metrics.jsonl")] == expected
    assert summary["tokens"] == expected[-1] and summary["resumed_from"] == 3
    events = events_of(tmp_path / BOARD)
    starts = [event.step for event in events if event.session_log.status == SessionLog.START]
    assert starts == [1, 4], "TensorBoard forgets what was logged beyond the checkpoint"


def test_so_many_tokens_are_the_end(tmp_path: Path) -> None:
    """`most_tokens` ends a training as its last step would, stopped on the way or not."""
    whole, stopped = fresh(), fresh()
    settings = few_steps(50, most_tokens=45)
    summary = fit(whole, settings, tmp_path / "whole")
    assert summary["steps"] == 4 and summary["tokens"] == 10 + 11 + 12 + 13

    def stop(row: dict) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit(stopped, settings, tmp_path / "stopped", stop)
    stopped = fresh()
    assert fit(stopped, settings, tmp_path / "stopped")["steps"] == 4
    assert torch.equal(whole.weight, stopped.weight)


def test_mfu_is_the_share_of_the_measured_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, clock = "speechgpt_lib.training.log", iter([0.0, 2.0, 3.0])
    monkeypatch.setattr(f"{room}.matmul_peak", lambda device, precision, threads: 1e9)
    monkeypatch.setattr(f"{room}.time.perf_counter", lambda: next(clock))
    accelerator, path = Accelerator(cpu=True), tmp_path / "metrics.jsonl"
    log = MetricsLog(path, accelerator, 0, 0, few_steps(4), flops_per_token=1e6)
    first, second = log.write(1, {}, 100), log.write(2, {}, 400)
    assert (first["tokens_per_second"], first["mfu"]) == (50, pytest.approx(0.05))
    assert (second["tokens_per_second"], second["mfu"]) == (300, pytest.approx(0.3))
    assert second["seconds_left"] == pytest.approx(3.0)


def test_a_full_disk_ends_the_training_at_once(tmp_path: Path) -> None:
    with files_limited_to(300), pytest.raises(OSError):
        fit(fresh(), few_steps(50), tmp_path)
