"""A recipe → its notebooks, executed in order into the run directory; those whose key is unchanged are reused.

    runs/lab/notebooks/01_unit_extraction.ipynb           the executed copy
    runs/lab/notebooks/01_unit_extraction.json            its key, its cost and what it left in the run directory
    runs/lab/notebooks/01_unit_extraction.partial.ipynb   under way or interrupted; *.failed.ipynb ended in an error

A notebook's *key* is a hash of its source, the recipe, the library's sources and the keys of the notebooks before it.
Reusing costs no more than these hashes: papermill and torch are not imported for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import speechgpt_lib
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.progress import Reporter
from speechgpt_lib.recipes.loading import BUILT_IN, load_recipe
from speechgpt_lib.runs.artefacts import hash_json, write_json
from speechgpt_lib.runs.memory import Monitor
from speechgpt_lib.runs.run import Run


@dataclass(frozen=True)
class NotebookResult:
    """An executed notebook: its copy, and what making it cost (wall seconds; MiB held by the process tree)."""

    name: str
    path: Path
    reused: bool
    wall_seconds: float
    peak_memory_mb: float


def run_notebooks(
    recipe: str | Path,
    run_dir: str | Path,
    only: list[str] | None = None,
    force: bool = False,
    notebooks_dir: Path | None = None,
    seed: int | None = None,
    on_progress: Callable[[str, int, int, str], None] | None = None,
) -> list[NotebookResult]:
    """Execute the notebooks of `recipe` (a name or a YAML path) in order with `run_dir` as their run directory.

    `only` selects by number or name ("3", "03", "03_cross_modal_instructions").  `force` executes again what could be
    reused and is handed on to the notebooks, so that their steps are made anew.  `seed` replaces the recipe's.
    `on_progress` is called with (notebook, number of the cell, number of cells, cell id) before each cell.

    Raises UserError when a notebook fails (naming it, the cell and the error) or a signal ends the run; what is made
    is kept, and the same call resumes.
    """
    notebooks = find_notebooks(notebooks_dir)
    selected = select(notebooks, only)
    settings = load_recipe(recipe, seed=seed)
    run = Run.create(Path(run_dir).expanduser().absolute(), settings)
    parameters = {
        # A path must mean the same in the notebook's folder as it did in the caller's.
        "recipe": str(recipe) if str(recipe) in BUILT_IN else str(Path(recipe).absolute()),
        "run_dir": str(run.path),
        "seed": settings.seed,
        "device": settings.device,
        "force": force,
    }
    keys = notebook_keys(notebooks, (run.path / "recipe.yaml").read_text(encoding="utf-8"))
    results = []
    reporter = Reporter(on_progress)
    with _lock(run.path / "notebooks"):
        for notebook in selected:
            state = None if force else reusable(run, notebook, notebooks, keys[notebook])
            if state is None:
                state = _execute(run, notebook, parameters, keys[notebook], reporter)
                result = _result(run, notebook, state, reused=False)
            else:
                reporter.reused(notebook.stem, state)
                result = _result(run, notebook, state, reused=True)
            results.append(result)
        reporter.summary(results)
    return results


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """The `NN_*.ipynb` of `folder` in order; by default the clone's, else those installed with the package."""
    clone = Path(speechgpt_lib.__file__).parents[1] / "notebooks"
    choices = [Path(folder)] if folder else [clone, Path(sys.prefix) / "share/speechgpt/notebooks"]
    for choice in choices:
        found = sorted(p.resolve() for p in choice.glob("[0-9][0-9]_*.ipynb"))
        if found:
            return found
    where = " or ".join(str(choice.absolute()) for choice in choices)
    raise UserError(
        f"no notebooks (NN_*.ipynb) in {where}: clone the repository and install it with `pip install -e .`"
    )


def select(notebooks: list[Path], only: list[str] | None) -> list[Path]:
    """Those of `notebooks` named in `only`, in their own order; all of them when `only` is None or empty."""
    chosen = set()
    for wanted in only or []:
        name = Path(wanted.strip()).name.removesuffix(".ipynb")
        matches = [
            p
            for p in notebooks
            if p.stem == name or (name.isdecimal() and int(p.stem[:2]) == int(name))
        ]
        if not matches:
            raise UserError(
                f"no notebook {wanted!r} in {notebooks[0].parent}; choose from {', '.join(p.stem for p in notebooks)}"
            )
        chosen.update(matches)
    return [p for p in notebooks if p in chosen] if only else list(notebooks)


def notebook_keys(notebooks: list[Path], recipe_text: str) -> dict[Path, str]:
    """The key of every notebook; `recipe_text` is the validated recipe with its seed, as the run directory holds it."""
    keys, before, library = {}, "", library_hash()
    for notebook in notebooks:
        before = hash_json(
            {
                "source": source_of(notebook),
                "recipe": recipe_text,
                "library": library,
                "before": before,
            }
        )
        keys[notebook] = before
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
        message = f"{notebook} is not a readable notebook ({type(error).__name__}: {error}); restore it from git"
        raise UserError(message) from None


def library_hash(folder: Path | None = None) -> str:
    """SHA-256 over the package's version and files, without the recipes: the chosen one is in the run directory."""
    folder = folder or Path(speechgpt_lib.__file__).parent
    digest = hashlib.sha256(speechgpt_lib.__version__.encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" not in name and not re.fullmatch(r"recipes/[^/]*\.yaml", name):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def reusable(run: Run, notebook: Path, notebooks: list[Path], key: str) -> dict | None:
    """The state of an executed notebook that still holds, else None.

    It holds when the key is the same, the copy and everything the notebook left in the run directory are still there,
    and no earlier notebook was executed after it.
    """
    state = read_state(run, notebook)
    if not state.get("finished") or state["key"] != key or not _copy(run, notebook).is_file():
        return None
    if any(not _intact(run, name, step_key) for name, step_key in state["steps"].items()):
        return None
    earlier = [read_state(run, other) for other in notebooks[: notebooks.index(notebook)]]
    overtaken = any((other.get("finished") or "") > state["started"] for other in earlier)
    return None if overtaken else state


def read_state(run: Run, notebook: Path) -> dict:
    """What is known of an executed notebook, {} when nothing (or nothing readable) is."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(_copy(run, notebook).with_suffix(".json").read_text(encoding="utf-8"))
        if {"key", "started", "finished", "steps", "wall_seconds", "peak_memory_mb"} <= set(state):
            return state
    return {}


def _execute(
    run: Run, notebook: Path, parameters: dict[str, Any], key: str, reporter: Reporter
) -> dict:
    # Imported here because papermill takes two seconds, which a run that reuses everything need not spend.
    from speechgpt_lib.notebook.execution import Stop, Stopped, execute, stop_on_signals

    target = _copy(run, notebook)
    state_path, clock = target.with_suffix(".json"), target.with_suffix(".progress.json")
    before = read_state(run, notebook)
    resumed = (
        before.get("key") == key
        and not before["finished"]
        and clock.exists()
        and not parameters["force"]
    )
    if not resumed:
        clock.unlink(missing_ok=True)
    state = {
        "notebook": notebook.name,
        "key": key,
        "started": _now(),
        "finished": None,
        "steps": {},
    }
    state |= {"wall_seconds": 0.0, "peak_memory_mb": 0.0}
    write_json(state_path, state)
    with (
        stop_on_signals(Stop()) as stop,
        reporter.executing(notebook.stem, resumed) as (on_cell, on_line),
    ):
        try:
            with Monitor(clock) as monitor:
                execute(notebook, target, parameters, stop, on_cell, on_line)
        except Stopped as stopped:
            raise UserError(
                f"stopped by {stopped} in {notebook.name} after {monitor.seconds:.0f} s; "
                f"what was made is kept in {run.path}, and the same command resumes"
            ) from None
    state["steps"] = {
        step.name: step.key for step in run.steps() if step.name.startswith(notebook.stem[:3])
    }
    state |= {
        "wall_seconds": round(monitor.seconds, 2),
        "peak_memory_mb": round(monitor.peak_memory_mb, 1),
        "finished": _now(),
    }
    write_json(state_path, state)
    clock.unlink(missing_ok=True)
    reporter.executed(notebook.stem, state, target)
    return state


def _copy(run: Run, notebook: Path) -> Path:
    return run.path / "notebooks" / notebook.name


def _result(run: Run, notebook: Path, state: dict, reused: bool) -> NotebookResult:
    return NotebookResult(
        notebook.stem, _copy(run, notebook), reused, state["wall_seconds"], state["peak_memory_mb"]
    )


def _intact(run: Run, name: str, key: str) -> bool:
    """Whether step `name` still has `key` and its files their sizes (hashing them would cost minutes)."""
    with contextlib.suppress(UserError, OSError, KeyError):
        step = run.find(name)
        return (
            step is not None
            and step.key == key
            and all(
                (step.path / file).stat().st_size == known["bytes"]
                for file, known in step.facts["outputs"].items()
            )
        )
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One run at a time in a run directory; the lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"the notebooks in {folder} are being executed by another process; wait or use another --run-dir"
            ) from None
        yield
