"""A recipe → its notebooks, executed into the run directory; those whose key is unchanged are
reused.

    runs/lab/notebooks/01_unit_extraction.ipynb           the executed copy
    runs/lab/notebooks/01_unit_extraction.json            its key, its cost and what it left in the
    run directory runs/lab/notebooks/01_unit_extraction.partial.ipynb   under way or interrupted;
    *.failed.ipynb ended in an error

A notebook's *key* is a hash of its source, the recipe with what it imports, and the library's
sources: all that the keys of its steps depend on.  So an edit in one notebook leaves the others as
they are.  Reusing costs no more than these
hashes: papermill and torch are not imported for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import speechgpt_lib
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.progress import Reporter
from speechgpt_lib.recipes.loading import BUILT_IN, load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.artefacts import fingerprint, hash_json, locked, write_json
from speechgpt_lib.runs.machine import Monitor
from speechgpt_lib.runs.names import NOTEBOOKS
from speechgpt_lib.runs.run import Run

LOG = "steps.log"  # in the run directory: what processes that make steps write to stderr


@dataclass(frozen=True)
class NotebookResult:
    """An executed notebook: its copy, and what making it cost (wall seconds; MiB held by the
    process tree)."""

    name: str
    path: Path
    reused: bool
    wall_seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Course:
    """The notebooks of a run, their parameters and keys, and who is told of progress."""

    run: Run
    notebooks: list[Path]
    parameters: dict[str, Any]
    keys: dict[Path, str]
    reporter: Reporter

    @property
    def force(self) -> bool:
        """Whether everything is made anew."""
        return self.parameters["force"]


def run_notebooks(
    recipe: str | Path,
    run_dir: str | Path,
    only: list[str] | None = None,
    force: bool = False,
    notebooks_dir: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    jobs: int = 1,
    on_progress: Callable[[str, int, int, str], None] | None = None,
    console: Console | None = None,
) -> list[NotebookResult]:
    """Execute the notebooks of `recipe` (a name or a YAML path) with `run_dir` as their run
    directory.

    only: numbers or names ("3", "03", "03_cross_modal_instructions").
    force: execute again what could be reused, and make the notebooks' steps anew.
    overrides: dotted keys of the recipe → values.
    jobs: how many notebooks and steps may be under way at once; the results are the same.
    on_progress: called with (notebook, number of the cell, number of cells, cell id) before each
        cell.
    console: where progress is shown; default: standard output.

    Raises UserError when a notebook or step fails (naming it and the error) or a signal ends the
    run; what is made is kept, and the same call resumes.
    """
    notebooks = find_notebooks(notebooks_dir)
    selected = select(notebooks, only)
    settings = load_recipe(recipe, overrides)
    reporter = Reporter(on_progress, console)
    run = Run.create(Path(run_dir).expanduser().absolute(), settings, reporter.say)
    as_it_is = str(recipe) in BUILT_IN and not set(overrides or {}) - {"seed"}
    parameters = {
        # A path must mean the same in the notebook's folder as it did in the caller's.
        "recipe": str(recipe) if as_it_is else str(run.path / "recipe.yaml"),
        "run_dir": str(run.path),
        "seed": settings.seed,
        "device": settings.device,
        "force": force,
    }
    keys = notebook_keys(
        notebooks, settings, (run.path / "recipe.yaml").read_text(encoding="utf-8")
    )
    course = Course(run, notebooks, parameters, keys, reporter)
    busy = f"the notebooks in {run.path} are being executed by another process"
    busy += "; wait or use another --run-dir"
    with locked(run.path / "notebooks" / ".lock", busy):
        results = (
            _in_order(course, selected) if jobs == 1 else _side_by_side(course, selected, jobs)
        )
    course.reporter.summary(results)
    return results


def _in_order(course: Course, selected: list[Path]) -> list[NotebookResult]:
    # Imported where they are needed: papermill takes two seconds, which a run that reuses
    # everything need not spend.
    results = []
    for notebook in selected:
        state = reusable(course, notebook)
        if state is not None:
            course.reporter.reused(notebook.stem, state)
            results.append(_result(course.run, notebook, state, reused=True))
            continue
        from speechgpt_lib.notebook.execution import Stop, stop_on_signals

        with stop_on_signals(Stop()) as stop:
            state = _execute(course, notebook, stop)
        results.append(_result(course.run, notebook, state, reused=False))
    return results


def _side_by_side(course: Course, selected: list[Path], jobs: int) -> list[NotebookResult]:
    """Steps in processes of their own, each as soon as it can; a notebook once its steps are there,
    which it finds finished."""
    states = {notebook: reusable(course, notebook) for notebook in selected}
    missing = [notebook for notebook in selected if states[notebook] is None]
    for notebook in selected:
        if notebook not in missing:
            course.reporter.reused(notebook.stem, states[notebook])
    if missing:
        from speechgpt_lib.notebook.parallel import Parallel

        outcome = Parallel(course, missing, jobs).run(_execute)
        states |= {notebook: outcome.done[notebook.stem] for notebook in missing}
    return [_result(course.run, n, states[n], reused=n not in missing) for n in selected]


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """The `NN_*.ipynb` of `folder` in order; by default the clone's, else those installed with the
    package."""
    clone = Path(speechgpt_lib.__file__).parents[1] / "notebooks"
    choices = [Path(folder)] if folder else [clone, Path(sys.prefix) / "share/speechgpt/notebooks"]
    for choice in choices:
        found = sorted(p.resolve() for p in choice.glob("[0-9][0-9]_*.ipynb"))
        if found:
            return found
    where = " or ".join(str(choice.absolute()) for choice in choices)
    how = "clone the repository and install it with `pip install -e .`"
    raise UserError(f"no notebooks (NN_*.ipynb) in {where}: {how}")


def select(notebooks: list[Path], only: list[str] | None) -> list[Path]:
    """Those of `notebooks` named in `only`, in their own order; all of them when `only` is None or
    empty."""
    chosen = set()
    for wanted in only or []:
        name = Path(wanted.strip()).name.removesuffix(".ipynb")
        matches = [
            p
            for p in notebooks
            if p.stem == name or (name.isdecimal() and int(p.stem[:2]) == int(name))
        ]
        if not matches:
            known, folder = ", ".join(p.stem for p in notebooks), notebooks[0].parent
            raise UserError(f"no notebook {wanted!r} in {folder}; choose from {known}")
        chosen.update(matches)
    return [p for p in notebooks if p in chosen] if only else list(notebooks)


def notebook_keys(notebooks: list[Path], recipe: Recipe, recipe_text: str) -> dict[Path, str]:
    """The key of every notebook; `recipe_text` is the validated recipe with its seed, as the run
    directory holds it.

    A notebook that is none of the course's own may read anything that those before it left, so they
    count too.
    """
    sources = [getattr(recipe.imports, name) for name in type(recipe.imports).model_fields]
    known = {"recipe": recipe_text, "library": library_hash()}
    known["imports"] = [
        fingerprint(recipe.data, source) for source in sources if source is not None
    ]
    keys, before = {}, ""
    for notebook in notebooks:
        own = hash_json({"source": source_of(notebook), **known})
        before = hash_json([own, before])
        keys[notebook] = own if notebook.stem in NOTEBOOKS else before
    return keys


def source_of(notebook: Path) -> list[list]:
    """What a notebook says, without its outputs: kind, id, text and tags of each cell."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [
            [c["cell_type"], c.get("id"), "".join(c["source"]), c["metadata"].get("tags", [])]
            for c in cells
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        message = f"{notebook} is not a readable notebook ({why}); restore it from git"
        raise UserError(message) from None


def library_hash(folder: Path | None = None) -> str:
    """SHA-256 over the package's version and files, without the recipes: the chosen one is in the
    run directory."""
    folder = folder or Path(speechgpt_lib.__file__).parent
    digest = hashlib.sha256(speechgpt_lib.__version__.encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" not in name and not re.fullmatch(r"recipes/[^/]*\.yaml", name):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def reusable(course: Course, notebook: Path) -> dict | None:
    """The state of an executed notebook that still holds, else None.

    It holds when the key is the same and the copy and everything that the notebook left in the run
    directory are still there.  A notebook that is none of the course's own must also be younger
    than all before it.
    """
    state = {} if course.force else read_state(course.run, notebook)
    finished = state.get("finished") and state["key"] == course.keys[notebook]
    if not finished or not _copy(course.run, notebook).is_file():
        return None
    if any(not _intact(course.run, name, key) for name, key in state["steps"].items()):
        return None
    if notebook.stem not in NOTEBOOKS:
        before = course.notebooks[: course.notebooks.index(notebook)]
        earlier = [read_state(course.run, other).get("finished") or "" for other in before]
        if any(finished > state["started"] for finished in earlier):
            return None
    return state


def read_state(run: Run, notebook: Path) -> dict:
    """What is known of an executed notebook, {} when nothing (or nothing readable) is."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(_copy(run, notebook).with_suffix(".json").read_text(encoding="utf-8"))
        if {"key", "started", "finished", "steps", "wall_seconds", "peak_memory_mb"} <= set(state):
            return state
    return {}


def _execute(course: Course, notebook: Path, stop: Any) -> dict:
    """Execute a notebook and return its state; `stop` is an `execution.Stop`."""
    from speechgpt_lib.notebook.execution import Stopped, execute

    run, target = course.run, _copy(course.run, notebook)
    state_path, clock = target.with_suffix(".json"), target.with_suffix(".progress.json")
    before = read_state(run, notebook)
    begun = before.get("key") == course.keys[notebook] and not before["finished"]
    resumed = begun and clock.exists() and not course.force
    if not resumed:
        clock.unlink(missing_ok=True)
    state: dict = {"notebook": notebook.name, "key": course.keys[notebook], "started": _now()}
    state |= {"finished": None, "steps": {}, "wall_seconds": 0.0, "peak_memory_mb": 0.0}
    write_json(state_path, state)
    with course.reporter.executing(notebook.stem, resumed) as (on_cell, on_line):
        try:
            with Monitor(clock) as monitor:
                execute(notebook, target, course.parameters, stop, on_cell, on_line)
        except Stopped as stopped:
            where = f"stopped by {stopped} in {notebook.name} after {monitor.seconds:.0f} s"
            kept = f"what was made is kept in {run.path}, and the same command resumes"
            raise UserError(f"{where}; {kept}") from None
    own = [step for step in run.steps() if step.name.startswith(notebook.stem[:3])]
    state |= {
        "steps": {step.name: step.key for step in own},
        "wall_seconds": round(monitor.seconds, 2),
        "cpu_seconds": round(monitor.cpu_seconds, 2),
        "peak_memory_mb": round(monitor.peak_memory_mb, 1),
        "finished": _now(),
    }
    write_json(state_path, state)
    clock.unlink(missing_ok=True)
    course.reporter.executed(notebook.stem, state, target)
    return state


def _copy(run: Run, notebook: Path) -> Path:
    return run.path / "notebooks" / notebook.name


def _result(run: Run, notebook: Path, state: dict, reused: bool) -> NotebookResult:
    cost = (state["wall_seconds"], state["peak_memory_mb"])
    return NotebookResult(notebook.stem, _copy(run, notebook), reused, *cost)


def _intact(run: Run, name: str, key: str) -> bool:
    """Whether step `name` still has `key` and its files their sizes (hashing them would cost
    minutes)."""
    step = run.find(name)
    return step is not None and step.key == key


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
