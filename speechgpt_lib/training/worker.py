"""One process of a training that `training.launch` started through torchrun: `python -m speechgpt_lib.training.worker stage1 runs/lab`."""

from __future__ import annotations

import os
import sys

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.run import Run


def main(name: str, run_dir: str) -> None:
    from speechgpt_lib import pipeline

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    run = Run.open(run_dir, say=print if rank == 0 else lambda line: None).as_worker(rank, world_size)
    getattr(pipeline, f"make_{name}")(run)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        sys.exit(f"stopped: {error}")
