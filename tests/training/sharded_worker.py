"""One process of sharded trainings for `test_sharding.py`.

Arguments: how many processes there are, and the trainings as JSON, one after the other: each a
folder, the step to stop at (0: none), and settings.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.training.checkpoints import save_module
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from tests.builders import few_steps, tiny_language_model, tiny_vocabulary


def batch_at(step: int, rank: int, world_size: int):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(3, 300, (8, 24), generator=generator)
    weights = torch.rand(8, 24, generator=generator)
    return ids[rank::world_size], weights[rank::world_size]


def main(processes: str, trainings: str) -> None:
    torch.set_num_threads(1)
    for folder, stop_at, settings in json.loads(trainings):
        train_in(Path(folder), int(processes), stop_at, settings)


def train_in(folder: Path, processes: int, stop_at: int, settings: dict) -> None:
    """Eight steps, or as many as it takes to stop."""
    model = tiny_language_model(tiny_vocabulary())

    def step_function(phase, modules, batch, step):
        loss, weight = modules["model"](*batch)
        return loss, weight, {}

    def stop(record: dict) -> None:
        if record["step"] == stop_at and int(os.environ.get("RANK", 0)) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    optimization = few_steps(8, learning_rate=3e-3, **settings)
    try:
        options = TrainingOptions(seed=0, world_size=processes, on_log=stop)
        task = Task({"model": CausalLoss(model)}, step_function, batch_at)
        train(task, optimization, folder, options)
    except KeyboardInterrupt:
        return
    if int(os.environ.get("RANK", 0)) == 0:
        save_module(model, folder / "trained.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
