"""Jobs in other processes: in order, and a process that is lost is an error that names its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechgpt_lib.corpora.audio import BadAudio
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.processes import run_in_processes


def make(job: tuple[Path, str]) -> int:
    """Write a shard, or meet with the accident that the job names."""
    path, accident = job
    if accident == "killed" and not path.with_suffix(".mark").exists():
        path.with_suffix(".mark").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if accident == "ended":
        os._exit(7)
    if accident == "crashed":
        os.abort()
    if accident == "bad sound":
        raise BadAudio("silent", path, "no sample above 0")
    if accident == "mistake":
        raise LookupError("a mistake")
    if accident == "memory":
        raise MemoryError
    if accident == "slow":
        time.sleep(0.5)
    path.write_text(str(os.getpid()))
    return int(path.stem)


def jobs(tmp_path: Path, *accidents: str) -> list[tuple[Path, str]]:
    return [(tmp_path / f"{k}.shard", accident) for k, accident in enumerate(accidents)]


@pytest.mark.parametrize("fresh", [False, True])
def test_answers_come_in_order_from_other_processes(fresh: bool, tmp_path: Path) -> None:
    given = jobs(tmp_path, "slow", "", "", "")
    assert list(run_in_processes(make, given, 2, fresh)) == [0, 1, 2, 3]
    makers = {path.read_text() for path, _ in given}
    assert str(os.getpid()) not in makers
    assert len(makers) == 4 if fresh else len(makers) <= 2


@pytest.mark.parametrize(
    ("accident", "fresh"),
    [("killed", False), ("killed", True), ("ended", False), ("ended", True), ("crashed", True)],
)
def test_a_lost_process_is_an_error_with_its_shards_name(
    accident: str, fresh: bool, tmp_path: Path
) -> None:
    given = jobs(tmp_path, "", accident, "", "")
    with pytest.raises(UserError, match=r"1\.shard was lost .*the same command goes on"):
        list(run_in_processes(make, given, 2, fresh))
    assert given[0][0].exists()
    if accident == "killed":  # the next start does what is missing
        missing = [job for job in given if not job[0].exists()]
        assert list(run_in_processes(make, missing, 2, fresh))
        assert all(path.exists() for path, _ in given)


@pytest.mark.parametrize(
    ("accident", "kind", "words"),
    [
        ("bad sound", UserError, "silent"),
        ("mistake", LookupError, "a mistake"),
        ("memory", MemoryError, ""),
    ],
)
def test_errors_of_a_job_are_raised_here(accident, kind, words, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        list(run_in_processes(make, jobs(tmp_path, "", accident), 2))


def test_one_who_stops_listening_leaves_no_process(tmp_path: Path) -> None:
    running = run_in_processes(make, jobs(tmp_path, *[""] * 6), 2)
    assert next(running) == 0
    running.close()
    maker = int((tmp_path / "0.shard").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(maker, 0)


def test_a_process_ends_without_a_search_for_garbage():
    code = (
        "import atexit, gc; from speechgpt_lib.runs.processes import end_soon\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000)); end_soon()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
