"""Training one step of a run in this process, or in several on this machine through torchrun.

`accelerate launch --cpu` starts processes that each train alone; torchrun makes them one group, and
every training is told the number of processes it must have.  The workers die with their launcher,
and the launcher with us: no orphan keeps memory.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import STEPS, TRAINED, find_step, make, order, plan
from speechgpt_lib.pipeline.step import OnLog
from speechgpt_lib.pipeline.worker import MEET_S
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.runs.processes import LOOPBACK, loopback_only, supervise
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.log import read_metrics

METRICS = "metrics.jsonl"  # in a step's folder
LOG = "launch.log"  # in the run directory: what the processes of the last launch wrote to stderr


def launch_steps(
    run: Run,
    names: Iterable[str],
    processes: int = 1,
    force: bool = False,
    on_log: OnLog = None,
    shards: slice | None = None,
) -> list[Step]:
    """The steps `names` and, before them, what they need; trainings and extractions in `processes`
    processes.

    `shards` makes that part of the last step only, as a job of an array does.
    """
    names = check_steps(names, shards, force)
    made = {}
    for name in order(run.recipe, names):
        cost, again = STEPS[name].cost, force and name in names
        if name == names[-1] and shards is not None:
            made[name] = make(run, name, again, on_log, shards)
        elif processes > 1 and (cost.processes or STEPS[name].in_parts(run.recipe)):
            made[name] = train_step(run, name, processes, again, on_log)
        else:
            made[name] = make(run, name, again, on_log)
    return [made[name] for name in names]


def check_steps(names: Iterable[str], shards: slice | None, force: bool) -> list[str]:
    """The names of these steps; UserError for one that there is not, or that can't be made so."""
    names = [find_step(name).name for name in names]
    if shards is not None and force:
        raise UserError("--force and --shards exclude each other: remove the step's folder instead")
    if shards is not None and not find_step(names[-1]).cost.splittable:
        split = ", ".join(name for name, step in STEPS.items() if step.cost.splittable)
        what = f"{names[-1]} can't be made in parts, so --shards is not for it"
        raise UserError(f"{what}; these can: {split}")
    return names


def train_step(
    run: Run, name: str, processes: int = 1, force: bool = False, on_log: OnLog = None
) -> Step:
    """Make the step `name` ("stage1") of `run` in `processes` processes; `on_log` hears every row
    of its metrics log.

    Raises UserError for a step that only one process can make, or when a process fails (with its
    reason; all that it wrote is in `launch.log` in the run directory).
    """
    step = find_step(name)
    if not (step.cost.processes or step.cost.splittable):
        raise UserError(f"{name} is no training: choose one of {', '.join(TRAINED)}")
    planned = plan(run, [name], force)[-1]
    # Each of several processes makes its own part; this one joins them.
    if processes == 1 or planned.state in ("reused", "imported"):
        return make(run, name, force, on_log)
    target = folder_of(name)
    if force:  # else workers might still see checkpoints that the first one is about to drop
        shutil.rmtree(run.path / f"{target}.partial", ignore_errors=True)
    command = torchrun_command(name, run, processes, force)
    run.say("$ " + " ".join(["python", *command[1:]]))
    run.say(f"{processes} processes, which must meet at {LOOPBACK} within {MEET_S[0]} s")
    follower = Follower(on_log or (lambda row: None), run.path / f"{target}.partial")
    earlier = run.find(name)
    status = supervise(command, run.say, run.path / LOG, follower.look, loopback_only())
    if status != 0:
        reason = f"{_reason(run.path / LOG)} (more in {run.path / LOG})"
        raise UserError(f"{name} in {processes} processes ended with exit code {status}: {reason}")
    if step.cost.splittable:
        if force:  # all parts are there anew: what they replace would only be found and reused
            shutil.rmtree(run.path / target, ignore_errors=True)
        return make(run, name, on_log=on_log)
    made = run.require(name)
    if earlier is None or earlier.facts != made.facts:  # it was made just now
        follower.tell_new(made.path)
    return made


class Follower:
    """Tells the rows of the metrics log that others write in `work`, each once and in order; a line
    half written waits until it is whole.

    What an earlier attempt has left there counts once this attempt has taken it up, which it says
    by writing the file `key` anew.
    """

    def __init__(self, tell: Callable[[dict], None], work: Path):
        self.tell, self.work, self.told = tell, work, 0  # the last step that was told
        self.before = self._key_written()

    def look(self) -> None:
        """Tell what is new, once this attempt has begun."""
        if self._key_written() not in (None, self.before):
            self.tell_new(self.work)

    def tell_new(self, folder: Path) -> None:
        """Tell the rows that were not told yet."""
        for row in read_metrics(folder / METRICS):
            if row["step"] > self.told:
                self.told = row["step"]
                self.tell(row)

    def _key_written(self) -> int | None:
        try:
            return (self.work / "key").stat().st_mtime_ns
        except OSError:
            return None


def torchrun_command(name: str, run: Run, processes: int, force: bool = False) -> list[str]:
    """The command that starts `processes` workers as one group; each is told how many there must
    be."""
    count, options = str(processes), ["force"] if force else []
    # As --standalone does, but by address: names may lead to other machines, or to none.
    meeting = ["--local-addr", LOOPBACK, "--rdzv-endpoint", f"{LOOPBACK}:0", "--rdzv-id", "here"]
    meeting += ["--rdzv-backend", "c10d", "--rdzv-conf", f"is_host=1,timeout={MEET_S[0]}"]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", count]
    launcher += meeting
    worker = ["-m", "speechgpt_lib.pipeline.worker", name, str(run.path), count]
    return [sys.executable, *launcher, *worker, *options]


def _reason(log: Path) -> str:
    """The first line in which a worker said why it ended, else the first error of any kind."""
    text = re.sub(r"(?m)^\[rank\d+\]: ", "", log.read_text(errors="replace"))
    lines = text.splitlines()
    own = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    other = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    last = [line for line in lines if re.search(r"\w", line)][-1:]
    return next(iter(own + other + last), "no reason given").removeprefix("error: ")[:500]
