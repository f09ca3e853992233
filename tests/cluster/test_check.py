"""What `doctor --on slurm` makes of the answers of a job, and of none; no Slurm is needed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from speechgpt_lib import __version__
from speechgpt_lib.cli.cluster import cluster_checks
from speechgpt_lib.cluster import check, probe
from speechgpt_lib.cluster.check import check_cluster, judge
from speechgpt_lib.cluster.site import Site
from speechgpt_lib.cluster.status import last_error
from speechgpt_lib.recipes.loading import load_recipe

GOOD = {"speechgpt": __version__, "sees_folder": True, "missing": [], "clock_s": 0.01}


def failed(answers: list[dict], tmp_path: Path, nodes: int = 2) -> dict[str, str]:
    found = judge(answers, nodes, tmp_path / "logs" / "doctor-7.log")
    return {one.name: one.found for one in found if not one.ok}


def test_two_good_answers_are_good(tmp_path: Path) -> None:
    assert failed([GOOD | {"node": "n1"}, GOOD | {"node": "n2"}], tmp_path) == {}


@pytest.mark.parametrize(
    ("wrong", "name", "words"),
    [
        ({"sees_folder": False}, "run directory, on nodes", "n2"),
        ({"speechgpt": "0.0.1"}, "environment, on nodes", "n2: 0.0.1"),
        ({"missing": ["/data"]}, "data, on nodes", "n2: /data"),
        ({"alone": "10.0.0.1:20001 not reached"}, "nodes reach each other", "n2: 10.0.0.1:20001"),
        ({"clock_s": -75.5}, "clocks", "n2: -75.5 s"),
    ],
)
def test_the_check_that_failed_names_the_node(wrong, name, words, tmp_path: Path) -> None:
    found = failed([GOOD | {"node": "n1"}, GOOD | {"node": "n2"} | wrong], tmp_path)
    assert found.keys() == {name} and words in found[name]


def test_a_node_that_says_nothing(tmp_path: Path) -> None:
    found = failed([GOOD | {"node": "n1"}], tmp_path)
    assert found == {"run directory, on nodes": "1 without an answer"}


def test_a_folder_that_no_node_sees_leaves_no_log(tmp_path: Path) -> None:
    (what,) = failed([], tmp_path).values()
    assert "not even a log: is this folder on a disk of all nodes?" in what


def test_an_environment_that_is_not_there_is_told_by_the_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "doctor-7.log").write_text("bash: module: command not found\n\n")
    (what,) = failed([], tmp_path).values()
    assert what.startswith("bash: module: command not found (see ")


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["before", "after"])
def test_the_cause_is_told_wherever_slurms_own_words_stand(order, tmp_path: Path) -> None:
    cause = "slurmstepd-n2: error: execve(): /nowhere/python: No such file or directory"
    cancelled = "slurmstepd-n1: error: *** STEP 119.0 ON n1 CANCELLED AT 2026-11-27T09:15:01 ***"
    lost = "srun: error: n2: task 1: Exited with exit code 2"
    log = tmp_path / "log"
    log.write_text("\n".join([cause, cancelled, lost][order]))
    assert last_error(log) == cause
    log.write_text(cancelled)
    assert last_error(log) == cancelled


def test_without_slurm_there_is_one_failed_check(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (one,) = check_cluster(tmp_path / "run", Site())
    assert not one.ok and one.required and one.found.startswith("no sbatch, squeue")
    assert not (tmp_path / "run").exists()


def test_tasks_meet_and_compare_their_clocks(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "26799")
    first = threading.Thread(target=probe.meet, args=(0, 3))
    first.start()
    assert abs(probe.meet(1, 3)) < 1 and abs(probe.meet(2, 3)) < 1
    first.join(10)
    assert not first.is_alive()
    monkeypatch.setattr(probe, "WAIT_S", 0.1)
    with pytest.raises(OSError, match=r"127.0.0.1:26799 not reached in 0 s"):
        probe.meet(1, 2)


def test_a_job_looks_at_no_cluster(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda name: name)
    for name in ("check_partition", "check_array"):
        monkeypatch.setattr(check.slurm, name, lambda value: None)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (bad,) = (c for c in check_cluster(tmp_path / "run", Site()) if not c.ok)
    assert bad.name == "a job" and "a job submits no others" in bad.found


@pytest.mark.parametrize(
    "changes,seen", [({"data": "/data"}, ("/data",)), ({"data": "s3://bucket/speech"}, ())]
)
def test_what_nodes_must_see_is_on_a_disk(changes, seen, tmp_path: Path, monkeypatch) -> None:
    asked: list = []
    monkeypatch.setattr(check, "check_cluster", lambda *words: asked.append(words))
    cluster_checks(tmp_path, None, load_recipe("small", changes))
    cluster_checks(tmp_path, None, load_recipe("lab"))
    assert [words[2] for words in asked] == [tuple(map(Path, seen)), ()]
