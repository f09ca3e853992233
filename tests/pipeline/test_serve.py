"""Steps in processes of their own: what they say, their errors, and their end."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline import serve
from speechgpt_lib.pipeline.serve import StepProcesses
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run

pytestmark = pytest.mark.slow  # each process imports torch, or its parent did


@pytest.fixture
def run(tmp_path: Path, monkeypatch, root) -> Run:
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setattr(serve, "LIBRARIES", serve.LIBRARIES[:1])  # no model is needed here
    return Run.create(tmp_path / "run", load_recipe("smoke"), say=lambda line: None)


@pytest.fixture(params=["cpu", "cuda"])
def steps(run: Run, tmp_path: Path, request):
    """Forked from a process that has the libraries, and started anew as beside a GPU."""
    made = StepProcesses(run.path, tmp_path / "log", request.param)
    yield made
    made.close()


def test_a_step_is_made_elsewhere_and_says_what_happens(run: Run, steps: StepProcesses) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="corpus is missing: run notebook 01"):
        steps.make("inventory", False, said.append)
    steps.make("text_model", False, said.append)
    assert run.require("text_model").metrics["steps"] == 6
    assert said[0] == "making   05_vocabulary_expansion/text_model"
    assert any(line.startswith("      … step ") for line in said)
    assert not steps.running


def test_what_the_libraries_print_goes_to_the_log(run: Run, tmp_path: Path) -> None:
    steps = StepProcesses(run.path, tmp_path / "log")
    (run.path / "recipe.yaml").write_text("name: [")
    with pytest.raises(UserError, match="recipe"):
        steps.make("text_model", False, print)
    assert (tmp_path / "log").is_file()


def copying() -> list[psutil.Process]:
    """The processes of this one that steps are copied from."""
    return [p for p in psutil.Process().children() if "forkserver" in " ".join(p.cmdline())]


def test_the_process_they_are_copied_from_ends_with_them(run: Run, tmp_path: Path) -> None:
    steps = StepProcesses(run.path, tmp_path / "log")
    steps.make("text_model", False, lambda line: None)
    assert copying()
    steps.close()
    assert not copying()
    steps.make("text_model", True, lambda line: None)  # it would start again


def test_where_a_socket_has_no_room_each_starts_anew(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    steps = StepProcesses(run.path, tmp_path / "log")
    assert steps.copies is None and steps.context.get_start_method() == "spawn"
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert StepProcesses(run.path, tmp_path / "log").copies


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_lost_or_interrupted_is_one_line(
    run: Run, tmp_path: Path, number: int
) -> None:
    steps = StepProcesses(run.path, tmp_path / "log")

    def end(line: str) -> None:
        if line.startswith("making"):
            (process,) = steps.running
            assert os.getsid(process.pid) == process.pid, "Ctrl-C is not for it"
            if number == signal.SIGINT:
                steps.interrupt()
            else:
                os.kill(process.pid, number)

    lost = "process that made corpus was lost .*exit code -9.*the same command resumes"
    words = lost if number == signal.SIGKILL else "corpus was stopped"
    with pytest.raises(UserError, match=words) as error:
        steps.make("corpus", False, end)
    assert "\n" not in str(error.value)
    steps.close()
    steps.make("corpus", False, lambda line: None)
    assert run.find("corpus") is not None


def test_what_is_still_under_way_ends_with_the_handle(run: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("speechgpt_lib.pipeline.serve.PATIENCE_S", 0.1)
    steps, began, failed = StepProcesses(run.path, tmp_path / "log"), threading.Event(), []

    def make() -> None:
        try:
            steps.make("corpus", False, lambda line: began.set())
        except UserError as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    assert began.wait(120)
    (process,) = steps.running
    steps.close()
    thread.join(60)
    assert "was lost" in str(failed[0])
    deadline = time.monotonic() + 20
    while psutil.pid_exists(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(process.pid)
