"""Twenty faults that nobody chose, over a run on two nodes: after all of them the same results."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from speechgpt_lib.cluster.jobs import jobs_of
from speechgpt_lib.cluster.site import Site, load_site
from speechgpt_lib.cluster.submit import submit_missing
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.runs.run import Run
from tests.cluster.slurm_lab import SlurmLab
from tests.cluster.test_on_slurm import hashes, quiet

pytestmark = pytest.mark.slow
DISK_MB = 256
STEPS = "units cross_modal_set chain_set expanded_model stage1 stage2 stage3".split()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nobody but root may mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


class Faults:
    """What can happen to the jobs of a run while they run.  Each returns what it hit, "" if there
    was nothing to hit."""

    def __init__(self, lab: SlurmLab, run: Run, chance: random.Random):
        self.lab, self.run, self.chance = lab, run, chance

    def process(self) -> str:
        """A process that does the work is killed."""
        return self._kill([p for p in self.working() if "srun" not in p.info["name"]])

    def daemon(self) -> str:
        """The daemon that watches over a job, or over a step of it, is killed."""
        mine = self.working()
        return self._kill(
            [p for p in processes() if p.info["name"] == "slurmstepd" and _above(p, mine)]
        )

    def node(self) -> str:
        """A node fails and comes back."""
        if not self.working():
            return ""
        name = f"n{self.chance.randint(1, self.lab.nodes)}"
        self.lab.call("scontrol", "update", f"nodename={name}", "state=down", "reason=fault")
        time.sleep(1)
        # Refused where its daemon has reported by itself meanwhile.
        self.lab.call("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        return name

    def cancelled(self) -> str:
        """An administrator cancels a job."""
        jobs = self.lab.call("squeue", "-h", "-t", "running", "-o", "%i").split()
        if jobs:
            self.lab.call("scancel", chosen := self.chance.choice(jobs))
        return chosen if jobs else ""

    def full_disk(self) -> str:
        """The disk is full for some seconds."""
        if not self.working():
            return ""
        full = self.run.path.parent / "others"
        with open(full, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * (1 << 20)):
                pass
        size = full.stat().st_size
        time.sleep(self.chance.uniform(1, 6))
        full.unlink()
        return f"by {size >> 20} MB"

    def working(self) -> list[psutil.Process]:
        """The processes that make steps of the run."""
        return [p for p in processes() if str(self.run.path) in " ".join(p.info["cmdline"] or ())]

    def _kill(self, found: list[psutil.Process]) -> str:
        if not found:
            return ""
        one = self.chance.choice(found)
        try:
            told = f"{one.pid} {' '.join(one.info['cmdline'])[:70]}"
            one.send_signal(signal.SIGKILL)
        except psutil.Error:
            return ""
        return told


def processes() -> list[psutil.Process]:
    return list(psutil.process_iter(["cmdline", "name"]))


def _above(process: psutil.Process, others: list[psutil.Process]) -> bool:
    """Whether a process is above one of the others."""
    try:
        return bool({*process.children(recursive=True)} & {*others})
    except psutil.Error:  # gone
        return False


def submit(run: Run, site: Site) -> bool:
    """Submit what is missing; whether anything was."""
    missing = jobs_of(run, site)
    if missing:
        submit_missing(run, site)
    return bool(missing)


def test_twenty_faults_lose_nothing(
    smoke_run, small_disk, steps_alone, on_slurm, site_file
) -> None:
    print(f"seed {(seed := random.randrange(10**6))}")
    shutil.copytree(smoke_run, small_disk / "run")
    run = Run.open(small_disk / "run", say=quiet)
    chance, site, before = random.Random(seed), load_site(site_file), hashes(run)
    for name in STEPS:
        shutil.rmtree(run.path / folder_of(name))
    faults = Faults(on_slurm, run, chance)
    todo = [faults.process, faults.daemon, faults.node, faults.cancelled, faults.full_disk] * 4
    chance.shuffle(todo)
    when = sorted(chance.choices(range(len(STEPS)), k=len(todo)))  # so many steps are finished
    finished: dict[Path, str] = {}
    deadline = time.monotonic() + 1500
    while (missing := submit(run, site)) or todo:
        assert time.monotonic() < deadline, on_slurm.call("squeue")
        if not missing:  # all is made: what is left happens to the last step, made again
            on_slurm.wait_for(lambda: not faults.working(), 30)
            assert hashes(run) == before
            shutil.rmtree(run.path / folder_of(STEPS[-1]))
            finished = {path: facts for path, facts in finished.items() if path.exists()}
            continue
        happened = ""
        while todo and not happened and on_slurm.call("squeue", "-h"):
            time.sleep(chance.uniform(0.2, 2))
            assert time.monotonic() < deadline, on_slurm.call("squeue")
            if sum(run.find(name) is not None for name in STEPS) >= when[-len(todo)]:
                happened = todo[0]()
        if happened:
            print(f"{time.strftime('%T')} {todo.pop(0).__name__} {happened}", flush=True)
        if not todo:
            on_slurm.wait_until_empty(300)
        made = {path: path.read_text() for path in run.path.glob("[0-9][0-9]_*/*/facts.json")}
        assert all(made[path] == facts for path, facts in finished.items()), "made once"
        finished = made
    on_slurm.wait_until_empty(60)
    assert hashes(run) == before
    on_slurm.wait_for(lambda: not faults.working(), 30)
