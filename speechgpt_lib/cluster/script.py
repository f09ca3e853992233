"""A job → its sbatch script, short enough to read, which a user may edit and submit by hand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from speechgpt_lib.cluster.jobs import ClusterJob
from speechgpt_lib.cluster.site import Site

# How a training learns where its first process is: by address, since names of nodes may lead
# nowhere from inside a job.
MEETING = """\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=$(scontrol -o show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
"""
ME = "me=$SLURM_JOB_ID"
# The job's number may mean its whole array.
ME_OF_ARRAY = "me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
# slurmstepd, which began as our parent, tells Slurm how a script has ended; killed, nobody does.
LOST = '[ $(ps -o ppid= $$) -ne $PPID ] && { scontrol requeue "$me"; exit; }'
# 130: told to stop, it has saved; 143: told again while it ended; 138: told before it could listen.
# A job that was cancelled is no longer RUNNING; a preempted one still is while its grace lasts.
GO_ON = """\
case $code in 130|138|143)
    echo "stopped in time; the job goes on where it was (start $((${SLURM_RESTART_COUNT:-0} + 2)))"
    [ "$(squeue -h -j "$me" -o %T)" = RUNNING ] && scontrol requeue "$me" && sleep 60
esac
"""
AGAIN = """\
if [ $code -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt RETRIES ]; then
    echo "exit code $code; tried again ($((${SLURM_RESTART_COUNT:-0} + 1)) of RETRIES times)"
    [ "$(squeue -h -j "$me" -o %T)" = RUNNING ] && scontrol requeue "$me" && sleep 60
fi
"""


def render(job: ClusterJob, site: Site, folder: Path) -> str:
    """The script of `job`; logs go to `folder`/logs, and it runs where it was written from."""
    log = f"{job.name}-%A_%a.log" if job.parts else f"{job.name}-%j.log"
    options = {
        "job-name": f"speechgpt-{job.name}",
        "output": str(folder / "logs" / log),
        "open-mode": "append",
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": getattr(site.times, job.kind),
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks,
        "cpus-per-task": site.cpus,
        "mem": f"{site.memory_gb:g}G" if site.memory_gb else None,
        "gpus-per-node": min(job.ranks, site.gpus_per_node) if job.gpu else None,
        "array": _array(job, site) if job.parts else None,
        "signal": f"USR1@{site.signal_s}" if job.kind == "training" else None,
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    lines += [f"#SBATCH {option}" for option in ("--requeue", *site.options)]
    words = [*shlex.split(site.container), site.python, *job.command]
    body = [f"cd {shlex.quote(str(Path.cwd()))}", *site.setup]
    body += [f"export TMPDIR={shlex.quote(site.scratch)}"] if site.scratch else []
    body += ["export PYTHONUNBUFFERED=1 SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"]
    body += MEETING.splitlines() if job.nodes * job.ranks > 1 else []
    # srun hands signals on to a training; other work needs no step of its own.
    launch = "srun --kill-on-bad-exit=1 " * (job.kind == "training" or job.nodes > 1)
    body += [f"{launch}{' '.join(map(_word, words))}", "code=$?"]
    body += [ME_OF_ARRAY if job.parts else ME, LOST]
    body += GO_ON.splitlines() if job.kind == "training" else []
    if job.parts and site.array.retries:
        body += AGAIN.replace("RETRIES", str(site.array.retries)).splitlines()
    path = folder / f"{job.name}.sbatch"
    about = [
        f"# {job.name}, written by `speechgpt run --on slurm`; you may edit and submit it by hand:",
        f"# sbatch {path}",
    ]
    return "\n".join(["#!/bin/bash", *about, *lines, "", *body, "exit $code", ""])


def _array(job: ClusterJob, site: Site) -> str:
    return f"0-{job.parts - 1}" + f"%{site.array.at_once}" * bool(site.array.at_once)


def _word(word: str) -> str:
    """A word of a command for the shell, which fills in the number of an array's part alone."""
    if re.fullmatch(r"\$SLURM_ARRAY_TASK_ID::\d+", word):
        return f'"{word}"'
    return shlex.quote(word)
