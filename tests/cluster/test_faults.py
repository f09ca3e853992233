"""Twenty faults that nobody chose, over a run on two nodes: after all of them the same results."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from speechgpt_lib.cluster.jobs import jobs_of
from speechgpt_lib.cluster.site import Site, load_site
from speechgpt_lib.cluster.submit import submit_missing
from speechgpt_lib.runs.run import Run
from tests.cluster.slurm_lab import SlurmLab
from tests.cluster.test_on_slurm import hashes, without_notebooks

pytestmark = pytest.mark.slow


class Faults:
    """What can happen to the jobs of a run while they run."""

    def __init__(self, lab: SlurmLab, run: Run, chance: random.Random):
        self.lab, self.run, self.chance = lab, run, chance

    def rank(self) -> str:
        """A process that does the work is killed."""
        return self._kill([p for p in self.working() if "srun" not in p.name()])

    def daemon(self) -> str:
        """The daemon that watches over a step of a job is killed.

        Not that of the job's script: Slurm notices its loss only when it next compares notes with
        the node, after minutes.
        """
        mine = {p.pid for p in self.working()}
        found = [p for p in processes() if p.name() == "slurmstepd" and self._below(p) & mine]
        return self._kill([p for p in found if ".batch]" not in " ".join(p.info["cmdline"])])

    @staticmethod
    def _below(process: psutil.Process) -> set[int]:
        try:
            return {child.pid for child in process.children(recursive=True)}
        except psutil.Error:  # gone
            return set()

    def node(self) -> str:
        """A node fails and comes back."""
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
        """A process can't write another byte."""
        found = [p for p in self.working() if "python" in p.name()]
        if not found:
            return ""
        one = self.chance.choice(found)
        try:
            one.rlimit(psutil.RLIMIT_FSIZE, (0, 0))
        except psutil.Error:
            return ""
        return str(one.pid)

    def working(self) -> list[psutil.Process]:
        """The processes that make steps of the run."""
        return [p for p in processes() if str(self.run.path) in " ".join(p.info["cmdline"] or ())]

    def _kill(self, found: list[psutil.Process]) -> str:
        if not found:
            return ""
        one = self.chance.choice(found)
        try:
            told = f"{one.pid} {one.name()}"
            one.send_signal(signal.SIGKILL)
        except psutil.Error:
            return ""
        return told


def processes() -> list[psutil.Process]:
    return list(psutil.process_iter(["cmdline", "name"]))


def submit(lab: SlurmLab, run: Run, site: Site) -> bool:
    """Submit what is missing, without notebooks, which have their own test; whether any was."""
    steps = [job for job in jobs_of(run, site) if job.step]
    if steps:
        new, _ = submit_missing(run, site)
        without_notebooks(lab, new)
    return bool(steps)


def test_twenty_faults_lose_nothing(copied: Run, on_slurm, site_file) -> None:
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    chance, site, run = random.Random(seed), load_site(site_file), copied
    before = hashes(run)
    for name in ("units", "cross_modal_set", "chain_set", "expanded_model", "stage1", "stage2"):
        shutil.rmtree(run.require(name).path)
    shutil.rmtree(run.require("stage3").path)
    faults = Faults(on_slurm, run, chance)
    kinds: list[Callable] = [faults.rank, faults.daemon, faults.node, faults.cancelled]
    todo = [*kinds, faults.full_disk] * 4
    chance.shuffle(todo)
    finished: dict[Path, str] = {}
    deadline = time.monotonic() + 900
    while submit(on_slurm, run, site):
        happened = ""
        while todo and not happened and on_slurm.call("squeue", "-h"):
            time.sleep(chance.uniform(0.2, 3))
            if happened := todo[-1]():
                print(f"{todo.pop().__name__} {happened}", flush=True)
            assert time.monotonic() < deadline, on_slurm.call("squeue")
        if not todo:
            on_slurm.wait_until_empty(300)
        made = {path: path.read_text() for path in run.path.glob("[0-9][0-9]_*/*/facts.json")}
        assert all(made[path] == facts for path, facts in finished.items()), "made once"
        finished = made
    assert not todo, "the run was over before all of them had happened"
    on_slurm.wait_until_empty(60)
    assert hashes(run) == before
    on_slurm.wait_for(lambda: not faults.working(), 30)
