"""Slurm's own commands: sbatch, squeue, scancel, sinfo; an error is told in Slurm's words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechgpt_lib.errors import UserError

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
UNDER_WAY = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING")
ALIVE = (*WAITING, *UNDER_WAY)


def call(*command: str) -> str:
    """What a command of Slurm prints; UserError with its own words where it fails."""
    if shutil.which(command[0]) is None:
        cure = "run this on a login node of your cluster, or without --on slurm"
        raise UserError(f"there is no {command[0]} here, so no Slurm: {cure}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        words = said[-1] if said else f"exit code {done.returncode}"
        raise UserError(f"{command[0]} refused: {words}")
    return done.stdout


def submit(script: Path, after: Sequence[str], after_any: Sequence[str] = ()) -> str:
    """Submit a script that begins once the jobs `after` have ended well, and `after_any` at all;
    returns the job's id."""
    terms = [f"afterok:{':'.join(after)}"] if after else []
    terms += [f"afterany:{':'.join(after_any)}"] if after_any else []
    depends = [f"--dependency={','.join(terms)}", "--kill-on-invalid-dep=yes"] if terms else []
    return call("sbatch", "--parsable", *depends, str(script)).strip().split(";")[0]


def states(ids: Iterable[str]) -> dict[str, list[str]]:
    """Job id → the states of what Slurm still knows of it (of an array: of each part)."""
    wanted = set(ids)
    found: dict[str, list[str]] = {name: [] for name in wanted}
    if wanted:
        me = ["-u", str(os.getuid())]
        for line in call("squeue", "-h", "-r", "-t", "all", *me, "-o", "%F %T").splitlines():
            job, state = line.split()
            if job in wanted:
                found[job].append(state)
    return found


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended don't matter."""
    if ids:
        call("scancel", *ids)


def refuse_inside_a_job() -> None:
    """Raises UserError in a job of Slurm."""
    if "SLURM_JOB_ID" in os.environ:
        here = f"this is job {os.environ['SLURM_JOB_ID']} of Slurm"
        raise UserError(f"{here}, and a job submits no others: run this on a login node")


def check_partition(name: str | None) -> None:
    """Raises UserError with the partitions that there are, if `name` is none of them."""
    known = [line.rstrip("*") for line in call("sinfo", "-h", "-o", "%P").split()]
    if name is not None and not set(name.split(",")) <= set(known):
        raise UserError(f"no partition {name!r}: this cluster has {', '.join(known)}")


def check_array(parts: int) -> None:
    """Raises UserError for more parts than an array of this cluster may have."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    if parts > (most := int(found[1]) - 1 if found else 1000):
        raise UserError(f"array.tasks is {parts}, this cluster allows {most} at most")


def count_nodes(partition: str | None) -> int:
    """How many nodes a partition has; of the default one if it is None."""
    rows = [line.split() for line in call("sinfo", "-h", "-o", "%P %D").splitlines()]
    wanted = set(partition.split(",")) if partition else None
    chosen = [row for row in rows if (row[0].rstrip("*") in wanted if wanted else "*" in row[0])]
    return max(1, sum(int(count) for _, count in chosen))


def reason(job: str) -> str:
    """Why a job waits, in Slurm's words."""
    return call("squeue", "-h", "-j", job, "-o", "%r").strip() or "no reason told"
