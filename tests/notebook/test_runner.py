"""What is executed, what is reused, and what is said about it; real kernels where the order of
things matters."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook import runner
from speechgpt_lib.notebook.progress import Reporter
from speechgpt_lib.notebook.runner import (
    find_notebooks,
    library_hash,
    notebook_keys,
    run_notebooks,
    select,
)
from speechgpt_lib.pipeline import serve
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.artefacts import files_in, fingerprint
from speechgpt_lib.runs.names import NOTEBOOKS
from speechgpt_lib.runs.run import Run
from tests.builders import tiny_inventory
from tests.pipeline.test_imports import libri

# A step whose file depends on the seed, as a notebook would make it.
STEP = """
from speechgpt_lib.runs.run import Run
run = Run.open(run_dir)
def make(work):
    (work / "value.txt").write_text(str(seed))
step = run.step("{folder}/thing", make, settings={{"size": {size}}}, force=force)
"""


@pytest.fixture(autouse=True)
def unchanging_library(monkeypatch):
    """The sources may be edited while the tests run; what that does to keys has its own test."""
    monkeypatch.setattr(runner, "library_hash", lambda: "library")


@pytest.fixture
def course(write_notebook, tmp_path):
    """Notebook 00 makes a step that 01 reads; a function runs both and tells which were
    executed."""
    write_notebook("00_units.ipynb", ("step", STEP.format(folder="00_units", size=1)))
    write_notebook(
        "01_end.ipynb", ("look", "print(open(run_dir + '/00_units/thing/value.txt').read())")
    )

    def run(**options):
        results = run_notebooks(
            "lab", tmp_path / "run", notebooks_dir=tmp_path / "notebooks", **options
        )
        assert all(result.path.is_file() and result.wall_seconds > 0 for result in results)
        return [result.name for result in results if not result.reused]

    return run


@pytest.mark.slow
def test_unchanged_notebooks_are_reused_and_changed_ones_executed_from_there_on(
    course, write_notebook, tmp_path, capsys
):
    copies = tmp_path / "run/notebooks"
    assert course() == ["00_units", "01_end"]
    state = json.loads((copies / "00_units.json").read_text())
    assert (
        list(state["steps"]) == ["00_units/thing"]
        and state["peak_memory_mb"] > 50
        and state["finished"]
    )
    assert sorted(p.name for p in copies.glob("*.ipynb")) == ["00_units.ipynb", "01_end.ipynb"]
    capsys.readouterr()

    assert course() == []
    assert "00_units                             reused     made 20" in capsys.readouterr().out
    elsewhere = Console(file=io.StringIO())
    assert course(console=elsewhere) == [] and not capsys.readouterr().out
    assert "00_units" in elsewhere.file.getvalue(), "with --json, progress goes to standard error"
    shutil.rmtree(
        tmp_path / "run/00_units/thing"
    )  # what 00 left is gone, and with it what followed from it
    assert course() == ["00_units", "01_end"]
    write_notebook("01_end.ipynb", ("look", "print('changed')"))
    assert course() == ["01_end"]
    copy, seed = (copies / "00_units.ipynb").read_bytes(), {"seed": 5}
    with pytest.raises(UserError, match="belongs to name: lab, seed: 0; .*--force"):
        course(overrides=seed)
    assert (copies / "00_units.ipynb").read_bytes() == copy
    assert course(only=["0"], overrides=seed, force=True) == ["00_units"]
    assert course(overrides=seed) == ["01_end"]
    assert (tmp_path / "run/00_units/thing/value.txt").read_text() == "5"


@pytest.mark.slow
def test_an_earlier_notebook_that_was_executed_again_takes_the_later_ones_along(course):
    assert course() == ["00_units", "01_end"]
    assert course(only=["00"], force=True) == ["00_units"]
    assert course() == ["01_end"]


@pytest.mark.slow
def test_a_failure_keeps_what_was_made_and_the_next_run_resumes(course, write_notebook, tmp_path):
    write_notebook("00_units.ipynb", ("fail", "raise ValueError('no units')"))
    with pytest.raises(UserError, match="00_units.ipynb, cell fail: ValueError: no units"):
        course()
    assert json.loads((tmp_path / "run/notebooks/00_units.json").read_text())["finished"] is None
    write_notebook("00_units.ipynb", ("step", STEP.format(folder="00_units", size=1)))
    assert course() == ["00_units", "01_end"]
    assert not list((tmp_path / "run/notebooks").glob("*.failed.ipynb"))


@pytest.mark.slow
def test_a_stopped_run_says_so_and_resumes_with_its_time_counted(course, tmp_path, capsys):
    class Interrupting(Reporter):
        @contextlib.contextmanager
        def executing(self, name, resumed):
            with super().executing(name, resumed) as (on_cell, on_line):

                def stop(number, cells, cell_id):
                    on_cell(number, cells, cell_id)
                    if (name, cell_id) == ("00_units", "step"):
                        os.kill(os.getpid(), signal.SIGTERM)

                yield stop, on_line

    message = "stopped by SIGTERM in 00_units.ipynb after .* the same command resumes"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=message):
        patch.setattr(runner, "Reporter", Interrupting)
        course()
    waited = json.loads((tmp_path / "run/notebooks/00_units.progress.json").read_text())["seconds"]
    assert course() == ["00_units", "01_end"]
    assert "00_units                             resuming" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "run/notebooks/00_units.json").read_text())["wall_seconds"] > waited
    )


def test_a_missing_parameter_is_an_error_before_anything_runs(write_notebook, tmp_path):
    write_notebook("00_start.ipynb", parameters='recipe = "lab"\nrun_dir = "x"')
    with pytest.raises(UserError, match="00_start.ipynb: unknown parameter device, force, seed"):
        run_notebooks("lab", tmp_path / "run", notebooks_dir=tmp_path / "notebooks")


def test_bad_input_is_one_line(write_notebook, tmp_path):
    folder = write_notebook("00_start.ipynb").parent
    with pytest.raises(UserError, match="no notebooks .* in .*empty: clone"):
        find_notebooks(tmp_path / "empty")
    with pytest.raises(UserError, match="no notebook '7' in .* choose from 00_start"):
        run_notebooks("lab", tmp_path / "run", only=["7"], notebooks_dir=folder)
    with pytest.raises(UserError, match="unknown recipe 'labb'"):
        run_notebooks("labb", tmp_path / "run", notebooks_dir=folder)
    (folder / "01_x.ipynb").write_text("{}")
    with pytest.raises(UserError, match="01_x.ipynb is not a readable notebook"):
        run_notebooks("lab", tmp_path / "run", notebooks_dir=folder)


def test_two_runs_do_not_share_a_run_directory(write_notebook, tmp_path):
    folder = write_notebook("00_start.ipynb").parent
    (tmp_path / "run/notebooks").mkdir(parents=True)
    with open(tmp_path / "run/notebooks/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for options in ({}, {"overrides": {"seed": 7}}, {"force": True}):
            with pytest.raises(UserError, match="being executed by another process"):
                run_notebooks("lab", tmp_path / "run", notebooks_dir=folder, **options)
        assert [path.name for path in (tmp_path / "run").rglob("*")] == ["notebooks", ".lock"]


def test_selection_by_number_and_name(write_notebook):
    notebooks = [
        write_notebook(name) for name in ("00_start.ipynb", "01_units.ipynb", "10_scale.ipynb")
    ]
    write_notebook("notes.ipynb")
    assert [p.name for p in find_notebooks(notebooks[0].parent)] == [
        "00_start.ipynb",
        "01_units.ipynb",
        "10_scale.ipynb",
    ]
    assert select(notebooks, None) == select(notebooks, []) == notebooks
    assert select(notebooks, ["10", "1", "01_units"]) == notebooks[1:]
    assert select(notebooks, ["notebooks/00_start.ipynb"]) == notebooks[:1]


def keys(paths, text="recipe", **changes):
    return notebook_keys(paths, load_recipe("smoke", changes), text)


def test_an_edit_in_one_notebook_of_the_course_leaves_the_others_alone(write_notebook, tmp_path):
    names = [f"{name}.ipynb" for name in NOTEBOOKS]
    paths = [write_notebook(name, ("x", "1")) for name in names] + [write_notebook("11_own.ipynb")]
    before = keys(paths)
    write_notebook(names[2], ("x", "2"))
    after = keys(paths)
    changed = [path.stem for path in paths if after[path] != before[path]]
    assert changed == ["02_unit_vocoder", "11_own"], "one that is none of the course's reads all"
    assert not set(keys(paths, "other").values()) & set(after.values())
    (tmp_path / "x.jsonl").write_text("1")
    source = {"imports.chain_set": str(tmp_path / "x.jsonl")}
    imported = keys(paths, **source)
    (tmp_path / "x.jsonl").write_text("2")
    assert not set(keys(paths, **source).values()) & set(imported.values())


def test_a_notebook_with_nothing_to_do_is_refused_where_it_is_named(tmp_path):
    given = {"only": ["5", "06"], "overrides": {"imports.stage2": "of-others"}}
    with pytest.raises(UserError, match=r"notebook 05, 06: stage2 imported.*imports.stage2=null"):
        run_notebooks("lab", tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_keys_depend_on_source_recipe_and_predecessors_but_not_on_outputs(write_notebook):
    paths = [write_notebook("00_a.ipynb", ("x", "1")), write_notebook("01_b.ipynb", ("x", "2"))]
    before = keys(paths)
    content = json.loads(paths[0].read_text())
    content["cells"][-1] |= {
        "execution_count": 4,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
    }
    paths[0].write_text(json.dumps(content, indent=4))
    assert keys(paths) == before
    other = keys(paths, "another seed")
    assert not set(other.values()) & set(before.values())
    write_notebook("01_b.ipynb", ("x", "3"))
    assert [keys(paths)[p] == before[p] for p in paths] == [True, False]
    write_notebook("00_a.ipynb", ("x", "3"))
    assert [keys(paths)[p] == before[p] for p in paths] == [False, False]


def test_library_hash_sees_every_source_but_no_recipe_and_no_cache(tmp_path):
    for name in (
        "a.py",
        "instructions/data/x.txt",
        "recipes/lab.yaml",
        "recipes/schema.py",
        "__pycache__/a.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = library_hash(tmp_path)
    (tmp_path / "recipes/lab.yaml").write_text("2")
    (tmp_path / "__pycache__/a.pyc").write_text("2")
    assert library_hash(tmp_path) == before
    for name in ("a.py", "instructions/data/x.txt", "recipes/schema.py"):
        (tmp_path / name).write_text("2")
        assert library_hash(tmp_path) != before
        (tmp_path / name).write_text("1")
    assert library_hash(tmp_path) == before


LITTER = (
    ".DS_Store",
    "instructions/._card.yaml",
    ".a.py.swp",
    "a.py~",
    "a.py.swo",
    "#a.py#",
    ".#a.py",
    "a.py.orig",
    "a.py.bak",
    ".ipynb_checkpoints/a-checkpoint.py",
    "__pycache__/a.py",
    "Thumbs.db",
    "desktop.ini",
    "Icon\r",
    "4913",
)


@pytest.mark.parametrize("name", LITTER)
def test_what_systems_and_editors_leave_in_the_package_is_no_code(tmp_path, name):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "model.bin").write_text("1")
    before, files = library_hash(tmp_path), fingerprint(tmp_path, ".")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("2")
    assert library_hash(tmp_path) == before
    if name != "4913":  # of an import, any name may be meant
        assert fingerprint(tmp_path, ".") == files


def test_every_file_of_the_package_counts_as_code(root):
    package = root / "speechgpt_lib"
    assert {path.suffix for path in files_in(package)} == {*runner.CODE}


def test_reusing_needs_neither_torch_nor_papermill(root):
    heavy = "{'torch', 'papermill'} & set(sys.modules)"
    reported = "speechgpt_lib.notebook.runner, speechgpt_lib.evaluation.report"
    code = f"import sys, {reported}; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# --- several at once, with the graph's own steps on a corpus of noise -----------------------------
MAKE = """
from speechgpt_lib.notebook.session import start
session = start(recipe, run_dir, seed, device, force)
for name in {names}:
    session.make(name)
"""
STEPS = {
    "01_unit_extraction": ["corpus", "inventory", "units"],
    "03_cross_modal_instructions": ["cross_modal_set"],
    "05_vocabulary_expansion": ["text_model", "expanded_model"],
}


@pytest.fixture
def small(write_notebook, tmp_path, monkeypatch):
    """Three notebooks of the course that make their steps; a function runs them in a run
    directory."""
    for name, steps in STEPS.items():
        write_notebook(f"{name}.ipynb", ("make", MAKE.format(names=steps)))
    tiny_inventory().save(tmp_path / "inventory")
    monkeypatch.setattr(serve, "LIBRARIES", serve.LIBRARIES[:1])  # models come where they are used
    changes = {"data": str(tmp_path), "corpora": libri(tmp_path), "imports.inventory": "inventory"}

    def run(folder, overrides=None, **options):
        overrides = changes | (overrides or {})
        where = {"notebooks_dir": tmp_path / "notebooks", "overrides": overrides}
        results = run_notebooks("smoke", tmp_path / folder, **where, **options)
        return [result.name for result in results if not result.reused]

    run.changes = changes
    return run


def hashes(run_dir):
    """Key and files of every step, without the logs, which hold seconds."""
    steps = Run.open(run_dir, say=lambda line: None).steps()
    logs = ("metrics.jsonl", "summary.json")
    return {
        step.name: (step.key, {k: v for k, v in step.facts["outputs"].items() if k not in logs})
        for step in steps
    }


@pytest.mark.slow
def test_several_at_once_make_what_one_after_the_other_makes(
    small, write_notebook, tmp_path, capsys
):
    missing = {"imports.cross_modal_set": "absent.jsonl"}
    with pytest.raises(UserError, match="absent.jsonl, which is not there.*need it: 03_cross") as e:
        small("two", missing, jobs=2)
    assert "\n" not in str(e.value)
    done = sorted(path.stem for path in (tmp_path / "two/notebooks").glob("*.ipynb"))
    assert done == ["01_unit_extraction", "05_vocabulary_expansion"], "the others finish"
    assert small("two", jobs=2) == list(STEPS), "another recipe: every notebook shows it"
    assert capsys.readouterr().out.count("making   01_unit_extraction/units") == 1

    assert small("one") == list(STEPS)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(hashes(tmp_path / "one")) == sum(map(len, STEPS.values()))
    assert small("two", jobs=2) == []
    write_notebook("03_cross_modal_instructions.ipynb", ("look", "print('edited')"))
    assert small("two", jobs=2) == small("one") == ["03_cross_modal_instructions"]


@pytest.mark.slow
def test_ctrl_c_stops_all_and_leaves_no_process(small, tmp_path, root):
    changes = small.changes | {"language_model.optimization.steps": 100_000}
    given = f"{str(tmp_path / 'run')!r}, notebooks_dir=Path({str(tmp_path / 'notebooks')!r})"
    code = (
        "import signal; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from speechgpt_lib.notebook.runner import run_notebooks\n"
        f"run_notebooks('smoke', {given}, overrides={changes!r}, jobs=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run/05_vocabulary_expansion/text_model.partial/metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "UserError: stopped by SIGINT; what was made" in errors
    _, alive = psutil.wait_procs(below, timeout=30)
    assert below and not alive
    assert list(log.parent.glob("checkpoints/step_*")), "the training has saved where it was"
