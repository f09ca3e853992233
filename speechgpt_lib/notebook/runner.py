"""A recipe → its notebooks, executed into the run directory; those with the same key are reused.

A *key* is a hash of the notebook's source, the recipe with what it imports, and the library (to
reuse, neither papermill nor torch is imported); a copy's `.json` holds it, with the cost."""

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import speechgpt_lib
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics import open_judge
from speechgpt_lib.notebook.progress import Reporter
from speechgpt_lib.recipes.loading import BUILT_IN, dump_recipe, load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import REPLACED
from speechgpt_lib.runs.artefacts import (
    files_in,
    fingerprint,
    hash_file,
    hash_json,
    locked,
    write_json,
)
from speechgpt_lib.runs.machine import Monitor
from speechgpt_lib.runs.names import NOTEBOOKS
from speechgpt_lib.runs.run import Run

# The files of the package that may change a result.
CODE = (".py", ".js", ".json", ".yaml", ".txt", ".mplstyle")


@dataclass(frozen=True)
class NotebookResult:
    """An executed notebook: its copy, and what making it cost (MiB held by the process tree)."""

    name: str
    path: Path
    reused: bool
    wall_seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Course:
    """The notebooks of a run, their parameters and keys, who is told of progress, how many threads
    a kernel has (None: all), and what makes kernels as copies (None: each begins anew)."""

    run: Run
    notebooks: list[Path]
    parameters: dict[str, Any]
    keys: dict[Path, str]
    reporter: Reporter
    threads: int | None = None
    copies: Any = None

    def copy(self, notebook: Path) -> Path:
        """Where the executed copy of a notebook belongs."""
        return self.run.path / "notebooks" / notebook.name

    def state(self, notebook: Path) -> dict:
        """What is known of an executed notebook, {} when nothing (or nothing readable) is."""
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(self.copy(notebook).with_suffix(".json").read_text(encoding="utf-8"))
            if {"key", "finished", "steps", "peak_memory_mb"} <= {*state}:
                return state
        return {}


def run_notebooks(
    recipe: str | Path,
    run_dir: str | Path,
    only: list[str] | None = None,
    force: bool = False,
    notebooks_dir: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    jobs: int = 1,
    console: Console | None = None,
) -> list[NotebookResult]:
    """Execute the notebooks of `recipe` (a name or a YAML path) into the run directory `run_dir`.

    only: numbers or names ("3", "03", "03_cross_modal_instructions").
    force: execute again what could be reused, and make the notebooks' steps anew.
    overrides: dotted keys of the recipe → values.
    jobs: how many notebooks and steps may be under way at once; the results are the same.
    console: where progress is shown; default: standard output.

    Raises UserError when a notebook or step fails (naming it and the error) or a signal ends the
    run; what is made is kept, and the same call resumes.
    """
    notebooks = find_notebooks(notebooks_dir)
    selected = select(notebooks, only)
    settings = load_recipe(recipe, overrides)
    reporter = Reporter(console)
    selected = _with_work(selected, settings, bool(only), reporter)
    run = Run(Path(run_dir).expanduser().absolute(), settings, reporter.say)
    saved, lock = run.path / "recipe.yaml", run.path / "notebooks" / ".lock"
    as_it_is = str(recipe) in BUILT_IN and not set(overrides or {}) - {"seed"}
    parameters = {
        # A path must mean the same in the notebook's folder as it did in the caller's.
        "recipe": str(recipe if as_it_is else saved),
        "run_dir": str(run.path),
        "seed": settings.seed,
        "device": settings.device,
        "force": force,
    }
    keys = notebook_keys(notebooks, settings, dump_recipe(settings))
    course = Course(run, notebooks, parameters, keys, reporter)
    # Look first: all may be there, in a folder that others share and nobody can write.
    states = {n: run.has_this_recipe() and _reuse(course, n, quiet=True) for n in selected}
    if all(states.values()):
        for notebook, state in states.items():
            reporter.reused(notebook.stem, state)
    else:
        run.refuse_another(force)
        busy = f"the notebooks in {run.path} are being executed by another process"
        with locked(lock, f"{busy}; wait or use another --run-dir"):
            Run.create(run.path, settings, reporter.say, force, held=lock)
            states = _execute_missing(course, selected, jobs)
    results = []
    for notebook, state in states.items():
        facts = ("reused" in state, state["wall_seconds"], state["peak_memory_mb"])
        results.append(NotebookResult(notebook.stem, course.copy(notebook), *facts))
    reporter.summary(results)
    return results


def _with_work(selected: list[Path], recipe: Recipe, named: bool, reporter: Reporter) -> list[Path]:
    """Those notebooks that have something to do with this recipe; a `named` one must have."""
    if not any(getattr(recipe.imports, stage) for stage in REPLACED):
        return selected
    from speechgpt_lib.pipeline.graph import left_out  # it imports torch

    without = {n: why for n in selected if (why := left_out(recipe, n.stem))}
    if without:
        names, why = ", ".join(n.stem[:2] for n in without), next(iter(without.values()))
        if named:
            raise UserError(f"nothing to do in notebook {names}: {why}")
        reporter.say(f"left out {names}: {why}")
    return [n for n in selected if n not in without]


def missing_notebooks(run: Run, notebooks: list[Path]) -> set[str]:
    """The names of those that `run_notebooks` would execute, as the run is now."""
    keys = notebook_keys(notebooks, run.recipe, dump_recipe(run.recipe))
    course = Course(run, notebooks, {"force": False}, keys, Reporter(None))
    return {n.stem for n in notebooks if _reuse(course, n, quiet=True) is None}


def _execute_missing(course: Course, selected: list[Path], jobs: int) -> dict[Path, dict]:
    """The states of the selected notebooks, executed where they are not there yet."""
    if jobs == 1:
        return {n: _reuse(course, n) or _execute(course, n) for n in selected}
    states = {n: _reuse(course, n) for n in selected}
    if missing := [n for n in selected if states[n] is None]:
        from speechgpt_lib.notebook.parallel import Parallel

        # Steps in processes of their own, each as soon as it can.
        done = Parallel(course, missing, jobs).run(_execute).done
        states |= {n: done[n.stem] for n in missing}
    return states


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """The `NN_*.ipynb` of `folder` in order; by default the clone's, else the installed ones."""
    clone = Path(speechgpt_lib.__file__).parents[1] / "notebooks"
    choices = [Path(folder)] if folder else [clone, Path(sys.prefix) / "share/speechgpt/notebooks"]
    for choice in choices:
        if found := sorted(p.resolve() for p in choice.glob("[0-9][0-9]_*.ipynb")):
            return found
    where = " or ".join(str(choice.absolute()) for choice in choices)
    how = "clone the repository and install it with `pip install -e .`"
    raise UserError(f"no notebooks (NN_*.ipynb) in {where}: {how}")


def select(notebooks: list[Path], only: list[str] | None) -> list[Path]:
    """Those of `notebooks` named in `only`, in their own order; all when it is None or empty."""
    chosen = set()
    for wanted in only or []:
        name = Path(wanted.strip()).name.removesuffix(".ipynb")
        number = int(name) if name.isdecimal() else None
        matches = [p for p in notebooks if p.stem == name or int(p.stem[:2]) == number]
        if not matches:
            known, folder = ", ".join(p.stem for p in notebooks), notebooks[0].parent
            raise UserError(f"no notebook {wanted!r} in {folder}; choose from {known}")
        chosen.update(matches)
    return [p for p in notebooks if p in chosen] if only else list(notebooks)


def notebook_keys(notebooks: list[Path], recipe: Recipe, recipe_text: str) -> dict[Path, str]:
    """The key of every notebook; `recipe_text` is the validated recipe as the run directory has it.

    One that is none of the course's own may read all that those before it left: they count too.
    """
    sources = [
        getattr(recipe.imports, name) for name, given in recipe.imports.used().items() if given
    ]
    imports = [fingerprint(recipe.data, source) for source in sources]
    judge = open_judge.identity(recipe.evaluation.open_judge, recipe.data)
    known = {"recipe": recipe_text, "library": library_hash(), "imports": imports, "judge": judge}
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
        why = f"({type(error).__name__}: {error}); restore it from git"
        raise UserError(f"{notebook} is not a readable notebook {why}") from None


def library_hash(folder: Path | None = None) -> str:
    """A hash of the package's version and code, without the recipes: a run has its own."""
    folder = folder or Path(speechgpt_lib.__file__).parent
    files = {p.relative_to(folder).as_posix(): p for p in files_in(folder) if p.suffix in CODE}
    other = re.compile(r"recipes/[^/]*\.yaml")
    sources = {name: hash_file(p) for name, p in files.items() if not other.fullmatch(name)}
    return hash_json([speechgpt_lib.__version__, sources])


def _reuse(course: Course, notebook: Path, quiet: bool = False) -> dict | None:
    """The state of an executed notebook that still holds, else None.

    It holds when the key is the same and the copy and all steps are there (hashing their files
    would cost minutes).  One that is none of the course's own must be younger than all before it.
    """
    state = {} if course.parameters["force"] else course.state(notebook)
    finished = state.get("finished") and state["key"] == course.keys[notebook]
    if not finished or not course.copy(notebook).is_file():
        return None
    for name, key in state["steps"].items():
        step = course.run.find(name)
        if step is None or step.key != key:
            return None
    if notebook.stem not in NOTEBOOKS:
        before = course.notebooks[: course.notebooks.index(notebook)]
        if any((course.state(n).get("finished") or "") > state["started"] for n in before):
            return None
    if not quiet:
        course.reporter.reused(notebook.stem, state)
    return state | {"reused": True}


def _execute(course: Course, notebook: Path, stop: Any = None) -> dict:
    """Execute a notebook and return its state; `stop` is an `execution.Stop`."""
    from speechgpt_lib.notebook.execution import Stop, Stopped, execute, stop_on_signals

    run, target, key = course.run, course.copy(notebook), course.keys[notebook]
    state_path, clock = target.with_suffix(".json"), target.with_suffix(".progress.json")
    before = course.state(notebook)
    begun = before.get("key") == key and not before["finished"]
    resumed = begun and clock.exists() and not course.parameters["force"]
    if not resumed:
        clock.unlink(missing_ok=True)
    state = {"notebook": notebook.name, "key": key, "started": datetime.now(UTC).isoformat()}
    state |= {"finished": None, "steps": {}, "wall_seconds": 0.0, "peak_memory_mb": 0.0}
    write_json(state_path, state)
    watched = course.reporter.executing(notebook.stem, resumed)
    try:
        with stop_on_signals(stop or Stop()) as stop, watched as told, Monitor(clock) as monitor:
            how = {"threads": course.threads, "copies": course.copies}
            execute(notebook, target, course.parameters, stop, *told, **how)
    except Stopped as stopped:
        where = f"stopped by {stopped} in {notebook.name} after {monitor.seconds:.0f} s"
        kept = f"what was made is kept in {run.path}, and the same command resumes"
        raise UserError(f"{where}; {kept}") from None
    state |= {
        "steps": {s.name: s.key for s in run.steps() if s.name.startswith(notebook.stem[:3])},
        "wall_seconds": round(monitor.seconds, 2),
        "cpu_seconds": round(monitor.cpu_seconds, 2),
        "peak_memory_mb": round(monitor.peak_memory_mb, 1),
        "finished": datetime.now(UTC).isoformat(),
    }
    write_json(state_path, state)
    clock.unlink(missing_ok=True)
    course.reporter.executed(notebook.stem, state, target)
    return state
