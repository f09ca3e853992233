"""The run directory: what is reused, remade and resumed, and what survives a failure."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
from datetime import datetime
from pathlib import Path
from typing import IO

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from speechgpt_lib.cli.main import app
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import dump_recipe, load_recipe
from speechgpt_lib.runs import artefacts
from speechgpt_lib.runs.artefacts import read_json, verify_outputs
from speechgpt_lib.runs.machine import cpu_facts
from speechgpt_lib.runs.names import FOLDERS
from speechgpt_lib.runs.run import Run
from tests.builders import files_limited_to, smoke_recipe

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
    assert {
        "outputs",
        "versions",
        "wall_seconds",
        "cpu_seconds",
        "peak_memory_mb",
        "finished",
        "seed",
    } <= made.facts.keys()


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

    run.step(NAME, write("old"), settings={})
    with pytest.raises(UserError, match=f"{NAME} stopped: No space left"):
        run.step(NAME, full, settings={"a": 1})
    assert (run.require(NAME).path / "out.txt").read_text() == "old"
    assert run.step(NAME, write("new"), settings={"a": 1}).facts["resumed"]


def test_a_library_that_cannot_write_stops_the_step_in_one_line(run: Run) -> None:
    def make(work: Path) -> None:
        save_file({"a": torch.zeros(30_000)}, work / "a.safetensors")

    with files_limited_to(4000), pytest.raises(UserError, match=f"{NAME} stopped: .*it resumes"):
        run.step(NAME, make, settings={})
    assert run.find(NAME) is None


def test_a_damaged_step_is_made_again(run: Run) -> None:
    step = run.step(NAME, write("whole"), settings={})
    (step.path / "out.txt").write_text("who")
    assert run.find(NAME) is None
    assert not run.step(NAME, write("whole"), settings={}).reused


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"outputs": '])
def test_a_step_with_damaged_facts_is_made_again(run: Run, content: str) -> None:
    said: list[str] = []
    step = run.step(NAME, write("whole"), settings={})
    (step.path / "facts.json").write_text(content)
    assert (
        not Run.create(run.path, run.recipe, said.append)
        .step(NAME, write("whole"), settings={})
        .reused
    )
    assert any("damaged" in line and NAME in line for line in said)


def test_facts_tell_how_results_came_about(run: Run) -> None:
    first = run.step("01_unit_extraction/first", write("1"), settings={})

    def make(work: Path) -> dict:
        assert not (work / "facts.json").exists()  # it is written last
        (work / "sub").mkdir()
        (work / "sub" / "out.txt").write_text("ok")
        return {"loss": 0.5}

    made = run.step(NAME, make, settings={"a": [1, 2]}, inputs={"source": first})
    facts = read_json(made.path / "facts.json")
    assert (
        facts == made.facts
        and facts["settings"] == {"a": [1, 2]}
        and facts["seed"] == run.recipe.seed
    )
    assert facts["inputs"] == {"source": {"step": "01_unit_extraction/first", "key": first.key}}
    assert facts["outputs"] == {
        "sub/out.txt": {"sha256": hashlib.sha256(b"ok").hexdigest(), "bytes": 2}
    }
    assert (
        facts["metrics"] == {"loss": 0.5}
        and facts["machine"]["device"] == "cpu"
        and facts["wall_seconds"] >= 0
    )
    assert facts["machine"]["cpu"] == cpu_facts() and facts["cpu_seconds"] >= 0
    assert (
        facts["versions"]["torch"] == importlib.metadata.version("torch")
        and facts["peak_memory_mb"] > 10
    )
    assert datetime.fromisoformat(facts["finished"]).tzinfo is not None
    assert sorted(p.name for p in made.path.iterdir()) == ["facts.json", "sub"]
    assert [step.name for step in run.steps()] == ["01_unit_extraction/first", NAME]


def test_another_seed_is_another_step(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other", smoke_recipe(seed=1), say=lambda line: None)
    assert run.step(NAME, write(), settings={}).key != other.step(NAME, write(), settings={}).key


def test_metrics_that_cannot_be_written_do_not_cost_the_work(run: Run) -> None:
    def make(work: Path) -> dict:
        (work / "checkpoints").mkdir(exist_ok=True)
        attempts = len(list((work / "checkpoints").iterdir()))
        (work / "checkpoints" / f"step_{attempts}").write_text("hours")
        return {"loss": float("nan") if attempts == 0 else 1.0}

    with pytest.raises(ValueError, match="JSON"):
        run.step(NAME, make, settings={})
    assert run.find(NAME) is None and not run.steps()
    done = run.step(NAME, make, settings={})
    assert done.facts["resumed"] and done.facts["outputs"] == {}


def test_two_cannot_make_a_step_at_once(run: Run) -> None:
    def make(work: Path) -> dict:
        with pytest.raises(UserError, match=r"being made .* by another process.*--run-dir"):
            Run.open(run.path, say=lambda line: None).step(NAME, never, settings={})
        return {}

    run.step(NAME, make, settings={})
    assert not list(run.path.glob("*/*.lock"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("other", [{"seed": 7}, {"name": "mine"}, {"name": "mine", "seed": 7}])
def test_a_directory_belongs_to_its_recipe_and_seed(run: Run, other: dict) -> None:
    run.step(NAME, write(), settings={})
    before, another = contents(run.path), smoke_recipe(**other)
    with pytest.raises(UserError, match=r"belongs to name: .*, seed: .*--run-dir.*--force"):
        Run.create(run.path, another)
    assert contents(run.path) == before
    assert Run.create(run.path, another, force=True).has_this_recipe()
    with pytest.raises(UserError, match="belongs to"):  # opened before it was given away
        run.step("05_other/model", never, settings={})
    assert run.step(NAME, never, settings={}).reused


def test_other_settings_of_its_recipe_may_follow(run: Run) -> None:
    Run.create(run.path, smoke_recipe(processes=2), say=lambda line: None)
    assert Run.open(run.path).recipe.processes == 2


@pytest.mark.parametrize("text", ["", "name: [", "name: smoke\n"])
def test_a_damaged_recipe_is_no_licence(run: Run, text: str) -> None:
    saved = run.path / "recipe.yaml"
    saved.write_text(text)
    if text:
        with pytest.raises(UserError, match="belongs to"):
            Run.create(run.path, run.recipe)
        assert saved.read_text() == text
    assert Run.create(run.path, run.recipe, force=True).has_this_recipe()


@pytest.mark.parametrize("force", [False, True])
def test_a_busy_directory_keeps_its_recipe(run: Run, force: bool) -> None:
    others = [smoke_recipe(processes=2)] + [smoke_recipe(seed=7)] * force

    def make(work: Path) -> dict:
        for other in others:
            with pytest.raises(UserError, match="in use by another process.*thing"):
                Run.create(run.path, other, force=force)
        assert run.has_this_recipe()
        return {}

    run.step(NAME, make, settings={})
    Run.create(run.path, others[-1], force=force)


def test_a_finished_run_is_used_where_nobody_can_write(run: Run, monkeypatch) -> None:
    run.step(NAME, write(), settings={})
    before = contents(run.path)

    def read_only(path: object, mode: str = "r", **options: object) -> IO:
        if mode not in ("r", "rb"):
            raise OSError(errno.EROFS, "Read-only file system")
        return open(path, mode, **options)

    monkeypatch.setattr(artefacts, "open", read_only, raising=False)
    for again in (Run.create(run.path, run.recipe), Run.open(run.path)):
        assert again.step(NAME, never, settings={}).reused
        assert again.step(NAME, never, settings={}, part=True).reused
        with pytest.raises(UserError, match=r"Read-only file system\): what is finished .*run_dir"):
            again.step(NAME, never, settings={"other": 1})
        with pytest.raises(UserError, match="Read-only file system"):
            again.step(NAME, never, settings={}, force=True)
    with pytest.raises(UserError, match="Read-only file system"):
        Run.create(run.path, smoke_recipe(processes=2))
    assert contents(run.path) == before


def test_a_lock_left_by_a_killed_process_does_not_bar_the_next(run: Run) -> None:
    (run.path / NAME).parent.mkdir(parents=True)
    (run.path / f"{NAME}.lock").touch()
    assert run.step(NAME, write(), settings={}).metrics


def test_a_lock_that_was_just_removed_is_not_taken_for_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, real = run.path / f"{NAME}.lock", fcntl.flock

    def flock(file, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        lock.unlink()  # its holder ends between our opening the file and our locking it
        real(file, operation)

    def make(work: Path) -> dict:
        with pytest.raises(UserError, match="another process"):
            run.step(NAME, never, settings={})
        return {}

    monkeypatch.setattr(fcntl, "flock", flock)
    run.step(NAME, make, settings={})


def test_a_missing_step_is_named_with_its_notebook(run: Run) -> None:
    with pytest.raises(UserError, match=r"01_unit_extraction\.ipynb.*--only 01"):
        run.require(NAME)


def test_a_fork_shares_steps_by_link(run: Run, tmp_path: Path) -> None:
    made = run.step(NAME, write("shared"), settings={})
    fork = run.fork(tmp_path / "fork", run.recipe, {"02_unit_vocoder/as": NAME})
    assert fork.require("02_unit_vocoder/as").key == made.key


def test_a_step_made_anew_in_a_fork_leaves_the_first_run_alone(run: Run, tmp_path: Path) -> None:
    run.step(NAME, write("shared"), settings={})
    fork = run.fork(tmp_path / "fork", run.recipe, {NAME: NAME})
    assert fork.step(NAME, never, settings={}).reused
    remade = fork.step(NAME, write("own"), settings={"other": True})
    assert (remade.path / "out.txt").read_text() == "own" and not remade.path.is_symlink()
    assert (run.require(NAME).path / "out.txt").read_text() == "shared"


def test_an_absent_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make tutorial"):
        Run.open(tmp_path / "none")


def test_short_names_stand_for_folders(run: Run) -> None:
    made = run.step("units", write(), settings={})
    assert made.name == FOLDERS["units"] == "01_unit_extraction/units"
    assert run.require("units").path == run.require(made.name).path == run.path / made.name
    assert run.key("units", {}, {}) == run.key(made.name, {}, {}) == made.key


def part_of(name: str):
    """A step of three files, each made by whoever finds it missing; `name` is made by this call."""

    def make(work: Path) -> dict:
        for wanted in "abc" if name == "all" else name:
            if not (work / wanted).exists():
                (work / wanted).write_text(f"by {name}")
        return {"files": len(list(work.glob("?")))}

    return make


def test_parts_are_joined_by_a_call_for_the_whole(run: Run) -> None:
    run.step(NAME, part_of("a"), settings={}, part=True)
    second = run.step(NAME, part_of("b"), settings={}, part=True)
    assert second.metrics == {"files": 2} and run.find(NAME) is None and not run.steps()
    whole = run.step(NAME, part_of("all"), settings={})
    assert whole.facts["resumed"] and whole.metrics == {"files": 3}
    assert [(whole.path / name).read_text() for name in "abc"] == ["by a", "by b", "by all"]
    assert run.step(NAME, never, settings={}, part=True).key == whole.key, "it is there already"


def test_a_part_of_other_settings_begins_afresh(run: Run) -> None:
    run.step(NAME, part_of("a"), settings={"a": 1}, part=True)
    run.step(NAME, part_of("b"), settings={"a": 2}, part=True)
    whole = run.step(NAME, part_of("all"), settings={"a": 2})
    assert (whole.path / "a").read_text() == "by all" and (whole.path / "b").read_text() == "by b"


def test_parts_do_not_bar_each_other(run: Run) -> None:
    def make(work: Path) -> dict:
        Run.open(run.path, say=lambda line: None).step(NAME, part_of("b"), settings={}, part=True)
        return part_of("a")(work)

    assert run.step(NAME, make, settings={}, part=True).metrics == {"files": 2}


def older_run(folder: Path) -> Path:
    """A run directory as version 0.1 laid it out: its recipe has one `corpus`."""
    values = yaml.safe_load(dump_recipe(smoke_recipe()))
    values["corpus"] = {"source": "lab"} | values.pop("corpora")[0]
    (folder / "01_unit_extraction" / "corpus").mkdir(parents=True)
    (folder / "01_unit_extraction" / "corpus" / "facts.json").write_text('{"key": "old"}')
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_run_of_an_earlier_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = older_run(tmp_path / "old")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    opened = (lambda: Run.create(folder, smoke_recipe()), lambda: Run.open(folder))
    for each in opened:
        with pytest.raises(UserError, match=r"old was made by an earlier version.*--run-dir") as e:
            each()
        assert "\n" not in str(e.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


ODD_FACTS = {
    "no object": lambda facts: [1],
    "nothing": lambda facts: None,
    "no key": lambda facts: {k: v for k, v in facts.items() if k != "key"},
    "no outputs": lambda facts: {k: v for k, v in facts.items() if k != "outputs"},
    "outputs that are a list": lambda facts: facts | {"outputs": [["out.txt", 1]]},
    "an output that is a number": lambda facts: facts | {"outputs": {"out.txt": 3}},
    "an output without a size": lambda facts: facts | {"outputs": {"out.txt": {}}},
    "an output with a NUL": lambda facts: facts | {"outputs": {"\0": {"bytes": 1}}},
    "a long output": lambda facts: facts | {"outputs": {"x" * 5000: {"bytes": 1}}},
    "metrics that are text": lambda facts: facts | {"metrics": "good"},
    "no metrics": lambda facts: {k: v for k, v in facts.items() if k != "metrics"},
    "seconds in words": lambda facts: facts | {"wall_seconds": "ten"},
    "no date": lambda facts: facts | {"finished": None},
    "inputs that are text": lambda facts: facts | {"inputs": "corpus"},
}


@pytest.mark.parametrize("kind", ODD_FACTS)
def test_odd_facts_are_of_no_finished_step(kind: str, run: Run) -> None:
    said: list[str] = []
    made = run.step(NAME, write(), settings={})
    file = made.path / "facts.json"
    file.write_text(json.dumps(ODD_FACTS[kind](read_json(file))))
    again = Run.open(run.path, say=said.append)
    assert again.find(NAME) is None and again.steps() == [] and "damaged" in said[0]
    assert again.step(NAME, write(), settings={}).metrics == {"letters": 1}


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": 1', "[" * 100_000, "\x00", '"' + "x" * 10**6],
    ids=lambda text: ascii(text[:20]),
)
def test_damaged_facts_are_of_no_finished_step(text: str, run: Run) -> None:
    made = run.step(NAME, write(), settings={})
    (made.path / "facts.json").write_text(text)
    assert run.find(NAME) is None


def test_a_fact_that_is_not_there_is_named_with_its_file(run: Run) -> None:
    run.step(NAME, write(), settings={})
    with pytest.raises(UserError, match=r"facts.json lacks 'speaking'"):
        run.require(NAME).metrics["speaking"]


@pytest.mark.parametrize("link", [f"{NAME}.lock", f"{NAME}.partial", f"{NAME}.partial/key"])
def test_links_in_a_run_are_not_followed(link: str, run: Run, tmp_path: Path) -> None:
    own, folder = tmp_path / "own.txt", tmp_path / "own"
    own.write_text("mine")
    folder.mkdir()
    (folder / "letter.txt").write_text("mine, too")
    place = run.path / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder if link.endswith(".partial") else own)
    try:
        run.step(NAME, write(), settings={})
    except UserError as error:
        assert "is a link" in str(error)
    assert own.read_text() == "mine"
    assert [p.name for p in folder.iterdir()] == ["letter.txt"]


def test_links_inside_an_interrupted_step_are_not_written_through(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("mine")

    def interrupted(work: Path) -> dict:
        (work / "out.txt").symlink_to(own)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step(NAME, interrupted, settings={})
    run.step(NAME, write(), settings={})
    assert own.read_text() == "mine"


def test_what_a_kill_or_a_full_disk_left_is_no_output(run: Run) -> None:
    def littered(work: Path) -> dict:
        for name in (".units-00000.parquet.ab12_xyz", "deep/.facts.json.abcdefgh"):
            (work / name).mkdir(parents=True)
            (work / name / "half").write_text("x")
        return write()(work)

    made = run.step(NAME, littered, settings={})
    assert list(made.facts["outputs"]) == ["out.txt"]
    assert sorted(p.name for p in made.path.rglob("*")) == ["deep", "facts.json", "out.txt"]


def test_a_program_of_a_recipe_is_asked_about(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", {"instructions.synthesiser": "curl x | sh {wav}"})
    run = Run.create(tmp_path / "run", recipe)
    for opened in (run, Run.open(run.path)):
        with pytest.raises(UserError, match=r"a program run .*curl x \| sh.*--allow-program"):
            opened.check_program()
    run.check_program(allow=True)
    Run.open(run.path).check_program()  # a worker, a notebook, the next start
    other = load_recipe("smoke", {"instructions.synthesiser": "another {wav}"})
    with pytest.raises(UserError, match="another"):
        Run(run.path, other).check_program()
    moved = run.path.rename(tmp_path / "sent to somebody else")
    with pytest.raises(UserError, match="--allow-program"):
        Run.open(moved).check_program()
    Run.create(tmp_path / "ours", smoke_recipe()).check_program()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "a byte":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif how == "a link":
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.write_bytes(data)
        path.unlink()
        path.symlink_to(elsewhere)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1])


@pytest.mark.parametrize("how", ["a byte", "a link", "gone", "cut"])
def test_a_finished_file_that_was_changed_is_found(run: Run, how: str) -> None:
    step = run.step(NAME, write("abc"), settings={})
    verify_outputs(step.path)
    damage(step.path / "out.txt", how)
    with pytest.raises(UserError, match="out.txt is damaged .*make it again"):
        verify_outputs(step.path)
    # At every start only what costs nothing is looked at: that it is a file of the same size.
    assert (run.find(NAME) is None) == (how != "a byte")
    assert run.step(NAME, write("abc"), settings={}).reused == (how == "a byte")


@pytest.mark.parametrize("outputs", ["x", [], {"out.txt": 3}, {"out.txt": {}}, None])
def test_facts_that_are_none_verify_nothing(run: Run, outputs: object) -> None:
    step = run.step(NAME, write("abc"), settings={})
    (step.path / "facts.json").write_text(json.dumps(step.facts | {"outputs": outputs}))
    with pytest.raises(UserError, match="damaged|lacks 'sha256'"):
        verify_outputs(step.path)


@pytest.mark.parametrize("belongs", ["another recipe", "another seed", "damaged"])
def test_a_program_is_not_allowed_in_the_directory_of_another(run: Run, belongs: str) -> None:
    saved = run.path / "recipe.yaml"
    if belongs == "damaged":
        saved.write_text("x")
    recipe = "lab" if belongs == "another recipe" else "smoke"
    given = ["--set", "instructions.synthesiser=say {wav}", "--allow-program"]
    given += ["--seed", "7"] if belongs == "another seed" else []
    before = contents(run.path)
    asked = ["run", "--recipe", recipe, "--run-dir", str(run.path), *given]
    done = CliRunner().invoke(app, asked)
    assert "belongs to" in str(done.exception) and contents(run.path) == before


@pytest.mark.parametrize("how", ["none", "a byte", "a link"])
def test_verify_is_an_option_of_run(run: Run, how: str) -> None:
    for name in (NAME, "01_unit_extraction/other"):
        step = run.step(name, write("abc"), settings={})
    damage(step.path / "out.txt", how) if how != "none" else None
    folder = ["--run-dir", str(run.path), "--verify", "--dry-run"]
    done = CliRunner().invoke(app, ["run", "--recipe", "smoke", *folder])
    said = f"{done.output} {done.exception}"
    if how == "none":
        assert done.exit_code == 0 and "verified 2 finished steps" in said
    else:
        assert done.exit_code != 0 and "other/out.txt is damaged" in said
