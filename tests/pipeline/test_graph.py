"""The graph of steps: its order, what it would do and why, and that nothing in it leads nowhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

import speechgpt_lib
from speechgpt_lib.cli.runs import run_recipe
from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline import graph
from speechgpt_lib.pipeline.graph import (
    STEPS,
    left_out,
    make,
    make_all,
    notebook_steps,
    order,
    plan,
    plan_side_by_side,
)
from speechgpt_lib.pipeline.step import Cost, Definition, Job
from speechgpt_lib.recipes.loading import BUILT_IN, load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.names import FOLDERS, NOTEBOOKS, folder_of, notebook_of
from speechgpt_lib.runs.run import Run
from tests.runs.test_run import older_run

LIBRI = {"reader": "librispeech", "root": "LibriSpeech", "held_out": 0.1}
MADE = {  # imports.<name> → steps that the notebooks then don't make
    "inventory": {"hubert", "unit_grid", "readings"},
    "stage2": {"text_model", "expanded_model", "stage1", "cross_modal_set", "minimal_pairs"},
    "stage3": {"text_to_unit", "voicing", "chain_set"},
}


# --- the real graph -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_step_comes_after_what_it_needs(name: str) -> None:
    recipe = load_recipe(name)
    found = order(recipe)
    assert len(found) == len(set(found))
    for k, step in enumerate(found):
        assert set(STEPS[step].inputs(recipe)) <= set(found[:k]), step
    assert set(order(load_recipe("lab"))) == STEPS.keys()


def test_a_step_brings_what_it_needs_and_no_more() -> None:
    recipe = load_recipe("lab")
    assert order(recipe, ["text_model"]) == ["text_model"]
    assert order(recipe, ["units"]) == ["corpus", "hubert", "readings", "inventory", "units"]
    assert "readings" not in order(load_recipe("lab-natural"))
    assert "stage2" not in order(recipe, ["stage1", "vocoder"])


def test_every_step_has_a_folder_and_a_notebook_that_makes_it(root: Path) -> None:
    recipe = load_recipe("lab")
    assert STEPS.keys() == FOLDERS.keys() and len(set(FOLDERS.values())) == len(FOLDERS)
    files = {path.stem for path in (root / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert {notebook_of(name) for name in STEPS} <= set(NOTEBOOKS) & files
    own = [s for n in NOTEBOOKS for s in notebook_steps(recipe, n) if notebook_of(s) == n]
    assert sorted(own) == sorted(STEPS)


def test_needs_depend_on_the_recipe() -> None:
    def needs(name: str, **changes) -> set[str]:
        return set(STEPS[name].inputs(load_recipe("smoke", changes)))

    tts = {"instructions.questions_from": "tts", "instructions.answers_from": "tts"}
    assert "text_to_unit" in needs("chain_set") and "text_to_unit" not in needs("chain_set", **tts)
    assert "corpus" not in needs("text_model") and "corpus" in needs("text_model", corpora=[LIBRI])
    assert "corpus" in needs("stage2", corpora=[LIBRI])
    published = {"imports.vocoder": {"checkpoint": "g", "config": "c"}}
    assert needs("vocoder", **published) == {"inventory"} < needs("vocoder")


@pytest.mark.parametrize("name", MADE)
def test_an_import_leaves_out_what_it_replaces(name: str) -> None:
    source = {"encoder": "x.pt", "layer": 1, "centroids": "k"} if name == "inventory" else "folder"
    recipe = load_recipe("smoke", {f"imports.{name}": source})
    assert STEPS.keys() - set(order(recipe)) == MADE[name]


@pytest.mark.parametrize(
    ("imported", "without"),
    [
        ((), ""),
        (("vocoder", "inventory", "text_model", "cross_modal_set", "chain_set"), ""),
        (("stage2",), "03 05 06 07 10 11"),
        (("stage3",), "04 08"),
        (("stage2", "stage3"), "03 04 05 06 07 08 10 11"),
    ],
)
def test_a_notebook_without_anything_to_make_or_show_is_left_out(imported, without) -> None:
    given = dict.fromkeys(imported, "folder")
    recipe = load_recipe("smoke", {f"imports.{name}": source for name, source in given.items()})
    why = {name[:2]: left_out(recipe, name) for name in (*NOTEBOOKS, "12_of_your_own")}
    assert [number for number, reason in why.items() if reason] == without.split()
    assert all(f"--set imports.{imported[-1]}=null" in r for r in why.values() if r)


@pytest.mark.parametrize("name", ["vocoder", "text_to_unit", "cross_modal_set", "chain_set"])
def test_what_is_imported_is_still_a_step(name: str) -> None:
    assert name in order(load_recipe("smoke", {f"imports.{name}": "folder"}))


def test_an_unknown_step_names_those_that_there_are() -> None:
    with pytest.raises(UserError, match="unknown step 'stage4': choose one of corpus, .*stage3"):
        order(load_recipe("smoke"), ["stage4"])


# --- keys of the recipe that nobody reads ---------------------------------------------------------
def fields_of(model: type[BaseModel]) -> set[str]:
    """The names of all keys below a section, those of sections in unions and lists included."""
    found: set[str] = set()

    def visit(annotation: object) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            for name, field in annotation.model_fields.items():
                found.add(name)
                visit(field.annotation)
        for inner in getattr(annotation, "__args__", ()):
            visit(inner)

    visit(model)
    return found


def test_every_key_of_the_schema_is_read_somewhere(root: Path) -> None:
    library = Path(speechgpt_lib.__file__).parent
    paths = [p for p in library.rglob("*.py") if p.parent.name != "recipes"]
    text = "\n".join(path.read_text() for path in paths)
    read = set(re.findall(r"\.(\w+)", text))
    # Imports and stages are read by the name of their step, shapes of models by a table.
    read |= STEPS.keys() | set(re.findall(r'^    "(\w+)": "\w+",$', text, re.MULTILINE))
    for handed_on in re.findall(r"\.model_dump\(include=\{([^}]*)\}", text):
        read |= set(re.findall(r'"(\w+)"', handed_on))
    assert len(fields_of(Recipe)) > 150
    assert not fields_of(Recipe) - read


# --- a small graph --------------------------------------------------------------------------------
def toy(name: str, *needs: str, **more) -> Definition:
    """A step that writes its name and what it read."""

    def do(job: Job) -> dict:
        read = [(step.path / "out").read_text() for step in job.inputs.values()]
        (job.work / "out").write_text(f"{name}({','.join(read)})")
        return {"read": len(read)}

    settings = {"settings": lambda recipe: {"layer": recipe.units.layer}} if not needs else {}
    given = {"settings": lambda recipe: {}, "make": do} | settings | more
    return Definition(name, needs, **given)


@pytest.fixture
def steps(monkeypatch) -> dict[str, Definition]:
    """A graph of four steps in the place of the real one; the vocoder can be imported."""
    brought = {"bring": lambda job: {"brought": True}, "bring_needs": ("inventory",)}
    made = (
        toy("corpus"),
        toy("inventory", "corpus"),
        toy("units", "corpus", "inventory", cost=Cost(gpu=True, splittable=True)),
        toy("vocoder", "units", "inventory", **brought),
    )
    found = {step.name: step for step in made}
    monkeypatch.setattr(graph, "STEPS", found)
    return found


def run_in(folder: Path, **changes) -> Run:
    return Run.create(folder, load_recipe("smoke", changes), say=lambda line: None)


def states(run: Run, *names: str, **options) -> dict[str, tuple[str, str]]:
    return {p.step: (p.state, p.why) for p in plan(run, names or graph.STEPS, **options)}


def test_a_circle_is_refused(steps, tmp_path: Path) -> None:
    steps["corpus"] = toy("corpus", "vocoder")
    circle = "in a circle: units → corpus → vocoder → units"
    with pytest.raises(UserError, match=circle) as error:
        order(load_recipe("smoke"), ["units"])
    assert "\n" not in str(error.value)


def test_a_step_that_is_not_there_is_refused(steps) -> None:
    steps["units"] = toy("units", "corpus", "wings")
    with pytest.raises(UserError, match="'units' needs 'wings', which is no step of the graph"):
        order(load_recipe("smoke"))


def test_a_missing_input_names_its_notebook(steps, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(UserError, match=r"01_unit_extraction/corpus is missing: .*--only 01"):
        make(run, "inventory")


def test_everything_is_made_once_and_read_by_what_needs_it(steps, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    (vocoder,) = make_all(run, ["vocoder"])
    assert (vocoder.path / "out").read_text().startswith("vocoder(units(corpus(),inventory(")
    assert all(run.require(name).facts["metrics"] for name in steps)
    assert make_all(run, ["vocoder"])[0].reused
    assert not make_all(run, ["vocoder"], force=True)[0].reused
    assert make(run, "units").reused, "force is for the steps that were named"


def test_a_plan_says_what_would_become_of_every_step_and_why(steps, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    assert set(states(run).values()) == {("made", "it is not there yet")}
    make_all(run, ["units"])
    found = states(run)
    assert found.pop("vocoder")[0] == "made"
    assert {state for state, _ in found.values()} == {"reused"} and "made 20" in found["units"][1]
    assert states(run, "inventory", force=True)["inventory"] == ("remade", "forced")

    changed = run_in(tmp_path / "run", **{"units.layer": 2})
    assert states(changed) == {
        "corpus": ("remade", "its settings changed"),
        "inventory": ("remade", "corpus changed"),
        "units": ("remade", "corpus, inventory changed"),
        "vocoder": ("made", "it is not there yet"),
    }
    other = Run(tmp_path / "run", load_recipe("smoke", {"seed": 9}), say=lambda line: None)
    assert states(other)["corpus"] == ("remade", "its version or seed changed")
    steps["corpus"] = toy("corpus", version=2)
    run = run_in(tmp_path / "run")
    assert states(run)["corpus"] == ("remade", "its version or seed changed")


def test_a_plan_tells_what_is_resumed_and_imported(steps, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", **{"imports.vocoder": "published"})
    assert states(run)["vocoder"] == ("imported", "from published")
    assert "units" in states(run) and plan(run, ["vocoder"])[-1].needs == ("inventory",)
    files = {"checkpoint": "g_00500000", "config": "config.json"}
    published = run_in(tmp_path / "run", **{"imports.vocoder": files})
    assert states(published)["vocoder"] == ("imported", "from g_00500000")
    make_all(published, ["vocoder"])
    assert published.require("vocoder").metrics == {"brought": True}
    assert states(published)["vocoder"][0] == "reused"

    def interrupted(job: Job) -> None:
        raise KeyboardInterrupt

    whole, steps["units"] = steps["units"], toy("units", "corpus", "inventory", make=interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(published, "units")
    steps["units"] = whole
    assert states(published)["units"] == ("resumed", "it was interrupted")
    assert states(published, force=True)["units"] == ("made", "it is not there yet")


def test_keys_of_a_plan_are_those_of_the_results(steps, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    planned = {p.step: p.key for p in plan(run)}
    make_all(run, ["vocoder"])
    assert {name: run.require(name).key for name in steps} == planned


def test_looking_makes_nothing(steps, tmp_path: Path) -> None:
    plan(Run(tmp_path / "run", load_recipe("smoke")))
    assert not list(tmp_path.iterdir())


def test_the_graph_as_text_has_a_line_for_each_step(steps, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", **{"imports.vocoder": "published"})
    lines = graph.render_plan(plan(run, steps)).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["01", "corpus", "made"],
        ["01", "inventory", "made"],
        ["01", "units", "made"],
        ["02", "vocoder", "imported"],
    ]
    assert lines[0].endswith("it is not there yet") and lines[2].endswith("← corpus, inventory")


# --- from the command line ------------------------------------------------------------------------
def dry_run(folder: Path, changes: list[str] | None = None, as_json: bool = True) -> None:
    given = {"only": None, "force": False, "seed": None, "jobs": 1, "dry_run": True}
    run_recipe("smoke", folder, changes, as_json=as_json, **given)


def test_a_dry_run_prints_the_graph_and_writes_nothing(tmp_path: Path, capsys) -> None:
    dry_run(tmp_path / "run", ["imports.vocoder={checkpoint: g, config: c}"])
    rows = {row["step"]: row for row in json.loads(capsys.readouterr().out)["steps"]}
    assert rows.keys() == STEPS.keys() and not list(tmp_path.iterdir())
    assert rows["units"]["folder"] == folder_of("units")
    assert rows["units"]["needs"] == ["corpus", "inventory"] and len(rows["units"]["key"]) == 64
    assert rows["units"]["cost"]["splittable"] and rows["stage1"]["cost"]["processes"]
    assert (rows["vocoder"]["state"], rows["vocoder"]["why"]) == ("imported", "from g")
    assert rows["stage3"]["notebook"] == "08_stage3_chain_of_modality_lora"
    dry_run(tmp_path / "run", as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == len(STEPS)


def test_a_dry_run_refuses_what_a_run_would(tmp_path: Path) -> None:
    folder = older_run(tmp_path / "old")
    with pytest.raises(UserError, match="made by an earlier version"):
        dry_run(folder)
    with pytest.raises(UserError, match="unknown key 'stage4'"):
        dry_run(tmp_path / "run", ["stage4.steps=1"])


def test_what_keeps_all_cores_busy_is_made_alone(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_recipe("lab"), say=lambda line: None)
    work, _ = plan_side_by_side(run, NOTEBOOKS, force=False)
    shares = {step: share for step, _, share, _, _ in work}
    assert shares["corpus"] == shares["stage1"] == shares["evaluation"] == 1.0
    assert shares["hubert"] == shares["readings"] == shares["stage2"] == shares["stage3"] == 0.5


def test_a_step_takes_half_of_the_processor_and_never_more_than_it_is_given(monkeypatch) -> None:
    monkeypatch.setattr(graph, "usable_cores", lambda: 16)
    before = torch.get_num_threads()
    try:
        for given, half in ((16, 8), (2, 2), (1, 1)):
            torch.set_num_threads(given)
            for name, expected in (("stage2", half), ("corpus", given)):
                with graph.threads(graph.STEPS[name]):
                    assert torch.get_num_threads() == expected
                assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_the_graph_is_known_without_the_code_of_models(root) -> None:
    """It takes seconds to import, and most commands and steps don't need it."""
    heavy = {"transformers.modeling_utils", "peft", "sympy", "torch._dynamo", "scipy", "soxr"}
    loaded = "import sys, speechgpt_lib.pipeline.graph, speechgpt_lib.pipeline.worker"
    code = f"{loaded}; print({heavy} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
