"""What a training says of itself: one JSON object a line in `metrics.jsonl`, and the same for TensorBoard beside it.

Every line holds step, what the step function measured, `tokens` (all so far, padding not counted), `tokens_per_second` and `mfu` (since the
line before), `memory_mb` (one process now; on a GPU its peak), `seconds` (of this attempt) and `seconds_left`.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.throughput import matmul_peak

BOARD = "tensorboard"  # the folder of event files


class MetricsLog:
    """Only the first process writes; the others' log stays empty, but is there for whoever moves it.

    On resume, lines after the checkpoint (`first` steps, `tokens` tokens) are dropped, so that no step is logged twice.

    Args:
        flops_per_token: what the model needs for a token, forward and backward; 0 leaves `mfu` out.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        first: int,
        tokens: int,
        settings: Optimization,
        flops_per_token: float,
    ):
        self.path, self.accelerator, self.first, self.tokens, self.steps = (
            path,
            accelerator,
            first,
            tokens,
            settings.steps,
        )
        peak = math.inf
        if flops_per_token:
            peak = matmul_peak(accelerator.device.type, settings.precision, torch.get_num_threads())
        self.share_of_peak = flops_per_token / (
            peak * accelerator.num_processes
        )  # that one token a second is
        self.board = None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if accelerator.is_main_process:
            kept = [row for row in read_metrics(path) if row["step"] <= first]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self.board = Board(path.parent / BOARD, first)
        self.started = self.last = time.perf_counter()

    def write(self, step: int, record: dict[str, Any], tokens: int) -> dict[str, float]:
        """Log `record` after `step` steps; `tokens`: all so far, of all processes (0: not counted).  Returns the line."""
        now = time.perf_counter()
        row = {
            "step": step,
            **pooled(self.accelerator, record | {"memory_mb": memory_mb(self.accelerator.device)}),
        }
        if tokens:
            speed = (tokens - self.tokens) / max(now - self.last, 1e-9)
            row |= {"tokens": tokens, "tokens_per_second": round(speed, 1)}
            row |= {"mfu": speed * self.share_of_peak} if self.share_of_peak else {}
        self.tokens, self.last = tokens, now
        seconds = now - self.started
        row |= {
            "seconds": seconds,
            "seconds_left": seconds / (step - self.first) * (self.steps - step),
        }
        row = {name: _number(value) for name, value in row.items()}
        if self.board:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.board.write(
                step,
                {
                    name: value
                    for name, value in row.items()
                    if name != "step" and value is not None
                },
            )
        return row


class Board:
    """An event file that TensorBoard reads: `tensorboard --logdir FOLDER`.

    tensorboardX writes the format.  Its own `SummaryWriter` hands every event to a thread, and waits for ever once that has met a full
    disk; so the file is written directly.
    """

    def __init__(self, folder: Path, first: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.events = EventsWriter(
            str(folder / "events"), f".{len(list(folder.iterdir()))}"
        )  # a file for each attempt
        # Tells TensorBoard to forget what an earlier attempt logged after the checkpoint.
        self.events.write_event(
            Event(
                wall_time=time.time(),
                step=first + 1,
                session_log=SessionLog(status=SessionLog.START),
            )
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self.events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self.events.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics log; a last line cut off by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def pooled(accelerator: Accelerator, record: dict[str, Any]) -> dict[str, Any]:
    """This process's figures → those of all: counts (int) are added up, everything else is averaged."""
    if accelerator.num_processes == 1:
        return record
    own = torch.tensor(
        [torch.as_tensor(value).item() for value in record.values()],
        dtype=torch.float64,
        device=accelerator.device,
    )
    sums = accelerator.reduce(own, "sum").tolist()
    pairs = zip(record.items(), sums, strict=True)
    return {
        name: round(total) if isinstance(value, int) else total / accelerator.num_processes
        for (name, value), total in pairs
    }


def memory_mb(device: torch.device) -> float:
    """MB that this process holds: tensors on a GPU at their peak, else resident memory."""
    size = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else psutil.Process().memory_info().rss
    )
    return round(size / 1e6, 1)


def _number(value: Any) -> float | None:
    value = value.item() if isinstance(value, torch.Tensor) else value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
