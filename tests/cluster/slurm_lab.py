"""A real Slurm on this machine: munge, a controller and two nodes on 127.0.0.1, without root,
accounting or control groups.  Its settings were found by trial; each has a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> list[str]:
    """Which of Slurm's programs are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def written_site(folder: Path, root: Path, tasks: int = 2) -> Path:
    """A site file in `folder` for a cluster whose jobs run the clone `root`, arrays in `tasks`."""
    file = folder / "site.yaml"
    file.write_text(
        f"cpus: 1\nsignal_s: 5\narray: {{tasks: {tasks}, retries: 2}}\n"
        f"setup: ['export PYTHONPATH={root} OMP_NUM_THREADS=1']\n"
    )
    return file


class SlurmLab:
    """A cluster below `folder` whose ports begin at `port`; `start` it, then `stop` it."""

    def __init__(self, folder: Path, port: int, nodes: int = 2, cpus: int = 2):
        self.folder, self.port, self.nodes = folder, port, nodes
        self.conf = folder / "slurm.conf"
        for name in ("state", "spool", "log", "run"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "run").chmod(0o700)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host = subprocess.run(["hostname", "-s"], capture_output=True, text=True).stdout.strip()
        me = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
        places = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 2}-{port + 1 + nodes}"
        self.conf.write_text(f"""\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
# a requeued job would wait for two minutes
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={port}
SlurmdPort={port + 1}
SrunPortRange={port + 100}-{port + 499}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
# it keeps what has ended, since there is no accounting to ask
MinJobAge=3600
InactiveLimit=0
SlurmdTimeout=30
MaxArraySize=1001
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[1-{nodes}] {places} CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES GraceTime=20 MaxTime=1-00:00:00 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=1-00:00:00 State=UP PriorityTier=10
""")

    @property
    def environment(self) -> dict[str, str]:
        """What leads Slurm's commands to this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def lead_here(self, patch: pytest.MonkeyPatch) -> None:
        """Lead commands of this process to this cluster, too."""
        for name, value in self.environment.items():
            patch.setenv(name, value)
        patch.delenv("SLURM_JOB_ID", raising=False)

    def call(self, *command: str, check: bool = True) -> str:
        """What a command prints."""
        env = os.environ | self.environment
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=check)
        return done.stdout.strip()

    def start(self) -> SlurmLab:
        """Start the daemons and wait until all nodes are idle."""
        run = self.folder / "run"
        options = {"key-file": self.folder / "munge.key", "socket": run / "munge.socket"}
        options |= {"pid-file": run / "munged.pid", "seed-file": run / "munge.seed"}
        options |= {"log-file": self.folder / "log" / "munged.log", "num-threads": 2}
        self.call("munged", "--force", *(f"--{name}={value}" for name, value in options.items()))
        self.call("slurmctld", "-f", str(self.conf), "-c")
        for number in range(1, self.nodes + 1):
            self.start_node(number)
        self.wait_for(lambda: self.idle() == self.nodes, 30)
        return self

    def start_node(self, number: int) -> None:
        """Start the daemon of one node."""
        self.call("slurmd", "-N", f"n{number}", "-f", str(self.conf), "-c")

    def idle(self) -> int:
        """How many nodes wait for work."""
        states = self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False)
        return states.split().count("idle")

    @staticmethod
    def wait_for(what, seconds: float, every: float = 0.2) -> None:
        """Wait until `what()` is true; an AssertionError after so many seconds."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
            time.sleep(every)

    def wait_until_empty(self, seconds: float = 600) -> None:
        """Wait until no job is in the queue."""
        # Five answers a second would take a tenth of a core.
        self.wait_for(lambda: not self.call("squeue", "-h", check=False), seconds, every=1)

    def stop(self) -> None:
        """Cancel all jobs, and end the daemons that were started here."""
        me = self.call("id", "-un")
        self.call("scancel", "-u", me, check=False)
        for name in ("slurmd.*.pid", "slurmctld.pid", "munged.pid"):
            for path in (self.folder / "run").glob(name):
                self.call("kill", path.read_text().strip(), check=False)
