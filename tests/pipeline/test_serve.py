"""The handle of a process that makes steps: what it says, its errors, and its end."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.serve import MARK, StepServer
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run


class Played:
    """A process whose answers are known beforehand."""

    def __init__(self, *lines: str, code: int = 0):
        self.stdin, self.stdout, self.code = io.StringIO(), io.StringIO("".join(lines)), code

    def wait(self) -> int:
        return self.code


def answer(**values: object) -> str:
    return MARK + json.dumps(values) + "\n"


def server(*lines: str, code: int = 0) -> StepServer:
    made = StepServer.__new__(StepServer)
    made.process, made.log = Played(*lines, code=code), Path("steps.log")
    return made


def test_what_happens_is_said_and_the_end_ends_it() -> None:
    said: list[str] = []
    handle = server("a library's line\n", answer(say="making x"), answer(done=True), "next\n")
    handle.make("units", True, said.append)
    assert said == ["a library's line", "making x"]
    assert json.loads(handle.process.stdin.getvalue()) == {"step": "units", "force": True}
    assert handle.process.stdout.read() == "next\n", "what comes later is the next step's"


def test_a_line_that_a_library_left_open_hides_no_answer() -> None:
    said: list[str] = []
    server(f"loading … {answer(done=True)}").make("units", False, said.append)
    assert said == ["loading …"]


def test_an_error_of_the_step_is_raised_here() -> None:
    with pytest.raises(UserError, match="^no units$"):
        server(answer(error="no units")).make("units", False, print)


def test_a_lost_process_is_one_line_that_says_how_to_go_on() -> None:
    words = "process that made units was lost .*exit code -9.* in steps.log.*resumes"
    with pytest.raises(UserError, match=words) as error:
        server(answer(say="making x"), code=-9).make("units", False, lambda line: None)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_process_makes_steps_until_it_is_told_to_end(tmp_path: Path, monkeypatch, root) -> None:
    monkeypatch.setenv("PYTHONPATH", str(root))
    run = Run.create(tmp_path / "run", load_recipe("smoke"), say=lambda line: None)
    said: list[str] = []
    handle = StepServer(run.path, tmp_path / "log")
    try:
        with pytest.raises(UserError, match="corpus is missing: run notebook 01"):
            handle.make("inventory", False, said.append)
        handle.make("text_model", False, said.append)
        assert run.require("text_model").metrics["steps"] == 6
        assert said[0] == "making   05_vocabulary_expansion/text_model"
        assert any(line.startswith("      … step ") for line in said)
        handle.process.kill()
        handle.process.wait()
        with pytest.raises(UserError, match="was lost .exit code -9"):
            handle.make("text_model", True, said.append)
    finally:
        handle.close()
    assert handle.process.returncode == -9 and isinstance(handle.process, subprocess.Popen)
