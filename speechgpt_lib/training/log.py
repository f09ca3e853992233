"""The metrics log: one JSON object a line in `metrics.jsonl`, and the same for TensorBoard.

Every line holds step, what the step function measured, `tokens` (all so far, padding not counted),
`tokens_per_second` and `mfu` (since the line before), `memory_mb` (one process now; on a GPU its
peak), `seconds` (of this attempt) and `seconds_left`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.devices import matmul_peak

BOARD = "tensorboard"  # the folder of event files: `tensorboard --logdir FOLDER`


class MetricsLog:
    """The log of one training; only the first process writes, the file is there for all.

    On resume, lines after the checkpoint (`first` steps, `tokens` tokens) are dropped, so that no
    step is logged twice.  `flops_per_token`, forward and backward, may be 0: no `mfu` then.  Events
    are written directly, since tensorboardX's `SummaryWriter` hands each to a thread, and waits for
    ever once that has met a full disk.
    """

    def __init__(
        self, path: Path, accelerator, first, tokens, settings: Optimization, flops_per_token: float
    ):
        self.path, self.accelerator, self.steps = path, accelerator, settings.steps
        self.first, self.tokens = first, tokens
        self.share_of_peak = 0.0  # that one token a second is
        if flops_per_token:
            device, threads = accelerator.device.type, torch.get_num_threads()
            peak = matmul_peak(device, settings.precision, threads) * accelerator.num_processes
            self.share_of_peak = flops_per_token / peak
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if accelerator.is_main_process:
            kept = [row for row in read_metrics(path) if row["step"] <= first]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
            board = path.parent / BOARD
            board.mkdir(exist_ok=True)
            attempt = f".{len(list(board.iterdir()))}"  # a file for each
            self.events = EventsWriter(str(board / "events"), attempt)
            # Tells TensorBoard to forget what an earlier attempt logged after the checkpoint.
            self._tell_board(first + 1, session_log=SessionLog(status=SessionLog.START))
        self.started = self.last = time.perf_counter()

    def write(self, step: int, record: dict[str, Any], tokens: int) -> dict[str, float]:
        """Log `record` after `step` steps; returns the line.

        `tokens`: all so far, of all processes (0: not counted).
        """
        now, device = time.perf_counter(), self.accelerator.device
        gpu = device.type == "cuda"
        own = torch.cuda.max_memory_allocated(device) if gpu else psutil.Process().memory_info().rss
        row = record | {"memory_mb": round(own / 1e6, 1)}
        if (world := self.accelerator.num_processes) > 1:  # counts are added up, others averaged
            values = [torch.as_tensor(value).item() for value in row.values()]
            values = torch.tensor(values, dtype=torch.float64, device=device)
            sums = zip(row.items(), self.accelerator.reduce(values, "sum").tolist(), strict=True)
            row = {n: round(x) if isinstance(v, int) else x / world for (n, v), x in sums}
        row = {"step": step} | row
        if tokens:
            speed = (tokens - self.tokens) / max(now - self.last, 1e-9)
            row |= {"tokens": tokens, "tokens_per_second": round(speed, 1)}
            row |= {"mfu": speed * self.share_of_peak} if self.share_of_peak else {}
        self.tokens, self.last = tokens, now
        row["seconds"] = seconds = now - self.started
        row["seconds_left"] = seconds / (step - self.first) * (self.steps - step)
        row = {name: _number(value) for name, value in row.items()}
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            known = [(n, v) for n, v in row.items() if n != "step" and v is not None]
            values = [Summary.Value(tag=name, simple_value=value) for name, value in known]
            self._tell_board(step, summary=Summary(value=values))
            self.events.flush()
        return row

    def _tell_board(self, step: int, **what: Any) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=step, **what))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics log up to a damaged one: a kill cuts off the last line."""
    rows = []
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError, LookupError):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
    return rows


def _number(value: Any) -> float | None:
    value = value.item() if isinstance(value, torch.Tensor) else value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
