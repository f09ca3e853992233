"""One process of a training of several: step, run directory and number of processes → its part.

`pipeline.launch` starts such processes on this machine, through torchrun:

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m speechgpt_lib.pipeline.worker
    stage1 runs/lab 2

Any other launcher that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT will do, on
one machine or on several that see the same run directory: `accelerate launch` with a configuration
from `recipes/accelerate`, or torchrun on every node. A task of srun finds its place itself.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import time

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import find_step, make
from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.runs.processes import end_soon, end_with_parent
from speechgpt_lib.runs.run import Run
from speechgpt_lib.runs.slurm_task import watched_by_slurm

MEET_S = (60, 300)  # for all processes to be there, on one machine and on several


def main(name: str, run_dir: str, processes: str, *options: str) -> None:
    """Take part in making step `name` of a run, as one of `processes` processes."""
    by_slurm = place_by_slurm(int(processes))
    signal.signal(signal.SIGTERM, _interrupt)  # the training loop answers with a checkpoint
    # torchrun gives each worker a session of its own: a killed launcher would leave them running.
    end_with_parent()
    end_soon()
    rank = int(os.environ.get("RANK", 0))
    # The run is told how many there must be; the training loop refuses if others are there.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", 1)) if by_slurm else usable_cores() // here
    torch.set_num_threads(max(1, cores))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if rank > 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        reach_first(rank, MEET_S[here < int(os.environ.get("WORLD_SIZE", here))])
    say = functools.partial(print, flush=True) if rank == 0 else lambda line: None
    run, force = Run.open(run_dir, say=say), "force" in options
    if find_step(name).cost.splittable:  # its parts need not know of each other
        make(run, name, force, shards=slice(rank, None, int(processes)))
    else:
        make(run.as_worker(rank, int(processes)), name, force)


def place_by_slurm(processes: int) -> bool:
    """Tells a task of srun its place among `processes`, where no launcher has; whether it did."""
    place = {
        "RANK": "SLURM_PROCID",
        "LOCAL_RANK": "SLURM_LOCALID",
        "WORLD_SIZE": "SLURM_NTASKS",
        "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
    }
    alone = "RANK" not in os.environ and "SLURM_PROCID" in os.environ
    if processes > 1 and alone:
        os.environ |= {ours: os.environ.get(slurms, "1") for ours, slurms in place.items()}
    return processes > 1 and alone


def reach_first(rank: int, seconds: float) -> None:
    """Wait until the first process can be reached; UserError after so many seconds."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    deadline = time.monotonic() + seconds
    while address and port.isdigit():
        try:
            return socket.create_connection((address, int(port)), timeout=5.0).close()
        except OSError as error:
            if time.monotonic() > deadline:
                what = f"process {rank} could not reach the first one at {address}:{port}"
                cure = "does MASTER_ADDR lead to its machine, and does a firewall let it through?"
                raise UserError(f"{what} in {seconds:.0f} s ({error}): {cure}") from error
            time.sleep(0.5)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


if __name__ == "__main__":
    try:
        with watched_by_slurm():
            main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(130)  # a job that ends so is requeued
