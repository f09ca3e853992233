"""The run directory: what is reused, remade and resumed, and what survives a failure."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import atomic_path, hash_json, write_json, write_text
from speechgpt_lib.runs.run import Run
from tests.builders import smoke_recipe

NAME = "01_unit_extraction/thing"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", smoke_recipe(), say=lambda line: None)


def write(text: str = "x"):
    def make(work: Path) -> dict:
        (work / "out.txt").write_text(text)
        return {"letters": len(text)}

    return make


def never(work: Path) -> dict:
    raise AssertionError("this step should have been reused")


def test_a_step_is_made_once_and_then_reused(run: Run) -> None:
    made = run.step(NAME, write("abc"), settings={"a": 1})
    assert made.metrics == {"letters": 3} and not made.reused
    again = run.step(NAME, never, settings={"a": 1})
    assert again.reused and again.key == made.key and (again.path / "out.txt").read_text() == "abc"
    assert {"outputs", "versions", "wall_seconds", "peak_memory_mb", "finished", "seed"} <= made.facts.keys()


@pytest.mark.parametrize("change", [{"settings": {"a": 2}}, {"version": 2}, {"force": True}])
def test_a_changed_key_or_force_makes_it_anew(run: Run, change: dict) -> None:
    run.step(NAME, write("old"), settings={"a": 1})
    remade = run.step(NAME, write("new"), **({"settings": {"a": 1}} | change))
    assert (remade.path / "out.txt").read_text() == "new"


def test_a_changed_input_remakes_what_depends_on_it(run: Run) -> None:
    first = run.step("01_unit_extraction/first", write("1"), settings={})
    run.step(NAME, write("a"), settings={}, inputs={"first": first})
    other = run.step("01_unit_extraction/first", write("2"), settings={"changed": True})
    assert not run.step(NAME, write("b"), settings={}, inputs={"first": other}).reused


def test_an_interrupted_step_finds_its_work_again(run: Run) -> None:
    def half(work: Path) -> dict:
        (work / "checkpoints").mkdir()
        (work / "checkpoints" / "one").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step(NAME, half, settings={})
    assert run.find(NAME) is None

    def rest(work: Path) -> dict:
        return {"found": (work / "checkpoints" / "one").read_text()}

    done = run.step(NAME, rest, settings={})
    assert done.metrics == {"found": "kept"} and done.facts["resumed"]
    assert not (done.path / "checkpoints").exists()


def test_an_interruption_with_other_settings_begins_afresh(run: Run) -> None:
    def half(work: Path) -> dict:
        (work / "rubbish").write_text("old")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step(NAME, half, settings={"a": 1})
    assert "rubbish" not in run.step(NAME, write(), settings={"a": 2}).facts["outputs"]


def test_a_failed_remake_keeps_the_old_results(run: Run) -> None:
    run.step(NAME, write("old"), settings={})
    with pytest.raises(ZeroDivisionError):
        run.step(NAME, lambda work: 1 / 0, settings={}, force=True)
    assert (run.require(NAME).path / "out.txt").read_text() == "old"


def test_a_full_disk_is_one_line_and_nothing_is_lost(run: Run) -> None:
    def full(work: Path) -> dict:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        run.step(NAME, full, settings={})
    assert run.step(NAME, write(), settings={}).metrics


def test_a_damaged_step_is_made_again(run: Run) -> None:
    step = run.step(NAME, write("whole"), settings={})
    (step.path / "out.txt").write_text("who")
    assert run.find(NAME) is None
    assert not run.step(NAME, write("whole"), settings={}).reused


def test_a_missing_step_is_named_with_its_notebook(run: Run) -> None:
    with pytest.raises(UserError, match=r"01_unit_extraction\.ipynb.*--only 01"):
        run.require(NAME)


def test_a_fork_shares_steps_by_link(run: Run, tmp_path: Path) -> None:
    made = run.step(NAME, write("shared"), settings={})
    fork = run.fork(tmp_path / "fork", run.recipe, {"02_unit_vocoder/as": NAME})
    assert fork.require("02_unit_vocoder/as").key == made.key


def test_an_absent_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make tutorial"):
        Run.open(tmp_path / "none")


def test_atomic_writes_leave_the_old_file_on_failure(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_json_refuses_what_is_no_json_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json(json.loads('{"b": [2], "a": 1}')) != hash_json({"a": 1, "b": [3]})
