"""One process of a sharded training for `test_sharding.py`.

Arguments: folder, steps, processes, step to stop at (0: none), more settings as JSON.
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


def main(folder: str, steps: str, processes: str, stop_at: str, settings: str) -> None:
    torch.set_num_threads(1)
    vocabulary = tiny_vocabulary()
    model = tiny_language_model(vocabulary)

    def step_function(phase, modules, batch, step):
        loss, weight = modules["model"](*batch)
        return loss, weight, {}

    def stop(record: dict) -> None:
        if record["step"] == int(stop_at) and int(os.environ.get("RANK", 0)) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    optimization = few_steps(int(steps), learning_rate=3e-3, **json.loads(settings))
    try:
        options = TrainingOptions(seed=0, world_size=int(processes), on_log=stop)
        task = Task({"model": CausalLoss(model)}, step_function, batch_at)
        train(task, optimization, Path(folder), options)
    except KeyboardInterrupt:
        return
    if int(os.environ.get("RANK", 0)) == 0:
        save_module(model, Path(folder) / "trained.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
