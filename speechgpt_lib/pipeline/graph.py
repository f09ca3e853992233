"""The one graph of steps: a dictionary from names to definitions, and what one may do with it.

A notebook cell, `speechgpt run`, `speechgpt train` and a worker of torchrun all call `make`.
`plan` says beforehand what would be reused, resumed, made or imported, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from speechgpt_lib.errors import UserError
from speechgpt_lib.surroundings import importing

with importing():  # torch, and all rooms
    import torch

    from speechgpt_lib.pipeline import evaluation, instructions, language_model, units, vocoder

from speechgpt_lib.pipeline.step import Definition, Job, OnLog
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import REPLACED
from speechgpt_lib.runs.artefacts import fingerprint
from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.runs.names import NOTEBOOKS, folder_of, notebook_of
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.devices import resolve_device

ROOMS = (units, vocoder, instructions, language_model, evaluation)
STEPS: dict[str, Definition] = {step.name: step for room in ROOMS for step in room.STEPS}
TRAINED = tuple(name for name, step in STEPS.items() if step.cost.processes)
# What notebooks show besides the steps that they make.
SHOWN = {
    "02_unit_vocoder": ("units", "inventory"),
    "06_stage1_modality_adaptation": ("text_model", "vocoder"),
    "07_stage2_cross_modal_finetuning": ("vocoder", "minimal_pairs"),
    "09_talk_to_speechgpt": ("stage1",),
    "10_scale_out": ("units", "expanded_model"),
    "11_your_own_voice": ("corpus", "inventory", "cross_modal_set", "vocoder", "stage2", "stage3"),
}


def find_step(name: str | Definition) -> Definition:
    """The definition of a step by its name ("stage1"); UserError with those that there are."""
    if isinstance(name, Definition):
        return name
    if name not in STEPS:
        raise UserError(f"unknown step {name!r}: choose one of {', '.join(STEPS)}")
    return STEPS[name]


def order(recipe: Recipe, names: Iterable[str] | None = None) -> list[str]:
    """Those steps (default: what the notebooks make) and all that they need, each after what it
    needs.

    Raises UserError for a cycle, or a step that is needed and not defined.
    """
    found: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"the steps need each other in a circle: {' → '.join((*path, name))}")
        if name not in STEPS:
            raise UserError(f"step {path[-1]!r} needs {name!r}, which is no step of the graph")
        if name not in found:
            for need in STEPS[name].inputs(recipe):
                visit(need, (*path, name))
            found.append(name)

    for name in default_steps(recipe) if names is None else names:
        visit(find_step(name).name, ())
    return found


def default_steps(recipe: Recipe) -> list[str]:
    """What the notebooks make: without those steps that an import leaves without a purpose."""
    ends = [name for name in STEPS if STEPS[name].imported(recipe) is None]
    if recipe.imports.inventory is not None:  # no encoder of our own to look into
        ends = [name for name in ends if name not in ("hubert", "unit_grid", "readings")]
    if units.hearing_of(recipe) is None:
        ends = [name for name in ends if name != "readings"]
    for stage, before in REPLACED.items():
        if getattr(recipe.imports, stage) is not None:
            ends = [name for name in ends if name not in before]
    return ends


def notebook_steps(recipe: Recipe, notebook: str) -> list[str]:
    """The steps that a notebook makes, and those that it shows."""
    known = order(recipe)
    own = [name for name in known if notebook_of(name) == notebook]
    shown = SHOWN.get(notebook, ())
    if notebook == NOTEBOOKS[0] and all(corpus.reader != "lab" for corpus in recipe.corpora):
        shown = ("corpus",)  # its example is a recording
    return own + [name for name in shown if name in known]


def left_out(recipe: Recipe, notebook: str) -> str | None:
    """Why a notebook has nothing to do with this recipe, or None: an imported stage stands for all
    that it makes, or for what it shows."""
    stages = [stage for stage in REPLACED if getattr(recipe.imports, stage) is not None]
    own, known = {name for name in STEPS if notebook_of(name) == notebook}, set(order(recipe))
    made, shown = own & known - {*stages}, set(SHOWN.get(notebook, ())) <= known
    if not stages or notebook not in NOTEBOOKS or made or (not own and shown):
        return None
    null = " ".join(f"--set imports.{stage}=null" for stage in stages)
    found = f"{' and '.join(stages)} imported, so what comes before is not made here"
    return f"{found}; with {null} it is"


def settings_of(step: Definition, recipe: Recipe) -> object:
    """The part of the recipe that makes a step's key, as JSON values."""
    source = step.imported(recipe)
    if source is None:
        return step.settings(recipe)
    return fingerprint(recipe.data, source) | {"settings": step.bring_settings(recipe)}


def make(
    run: Run,
    name: str | Definition,
    force: bool = False,
    on_log: OnLog = None,
    shards: slice | None = None,
) -> Step:
    """The finished step `name`, made or imported unless results with the same key are there
    already.

    What it needs must be finished.  `on_log` hears of progress: each row of a training's metrics
    log, for example. `shards` makes that part of a splittable step only and leaves it unfinished,
    for the jobs of an array; a call without it joins them.
    """
    step = find_step(name)
    inputs = {need: run.require(need) for need in step.inputs(run.recipe)}
    do = step.make if step.imported(run.recipe) is None else step.bring

    def work_on(work: Path) -> dict | None:
        with threads(step):
            return do(Job(run, work, inputs, on_log, shards or slice(None)))

    more = {"version": step.version, "force": force, "part": shards is not None}
    settings = settings_of(step, run.recipe)
    return run.step(step.name, work_on, settings=settings, inputs=inputs, **more)


def make_all(run: Run, names: Iterable[str], force: bool = False, on_log: OnLog = None) -> list:
    """These steps and, before them, what they need; `force` makes these alone anew."""
    names = [find_step(name).name for name in names]
    wanted = order(run.recipe, names)
    made = {name: make(run, name, force and name in names, on_log) for name in wanted}
    return [made[name] for name in names]


@contextlib.contextmanager
def threads(step: Definition) -> Iterator[None]:
    """The threads that a step takes on a CPU, whatever else runs: rounding, and so a hash, may
    depend on them."""
    if step.cost.threads == "all":
        yield
        return
    before = torch.get_num_threads()
    count = min(before, max(1, usable_cores() // 2))  # one of several processes has fewer
    with threadpool_limits(count):  # those of numpy and scikit-learn
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Planned:
    """What would become of a step: reused, resumed, made, remade or imported, and why."""

    step: str
    folder: str
    notebook: str
    needs: tuple[str, ...]
    state: str
    why: str
    key: str
    cost: dict


def plan(run: Run, names: Iterable[str] | None = None, force: bool = False) -> list[Planned]:
    """What `make` would do with these steps (default: all) in this run directory; makes nothing."""
    keys: dict[str, str] = {}
    found = []
    for name in order(run.recipe, names):
        step = STEPS[name]
        needs = step.inputs(run.recipe)
        settings = settings_of(step, run.recipe)
        keys[name] = run.key(name, settings, {need: keys[need] for need in needs}, step.version)
        state, why = _state(run, step, keys, settings, force)
        places = (name, folder_of(name), notebook_of(name))
        found.append(Planned(*places, needs, state, why, keys[name], asdict(step.cost)))
    return found


def _state(run: Run, step: Definition, keys: dict[str, str], settings: object, force: bool):
    key, imported = keys[step.name], step.imported(run.recipe)
    there = run.find(step.name)
    if there and there.key == key and not force:
        return "reused", f"made {there.facts['finished']}"
    partial = run.path / f"{folder_of(step.name)}.partial" / "key"
    if not force and partial.is_file() and partial.read_bytes() == key.encode():
        return "resumed", "it was interrupted"
    if imported is not None:
        source = imported if isinstance(imported, str) else next(iter(vars(imported).values()))
        return "imported", f"from {source}"
    if not there:
        return "made", "it is not there yet"
    if force:
        return "remade", "forced"
    inputs = there.facts["inputs"].items()
    changed = [need for need, known in inputs if keys.get(need) != known["key"]]
    if there.facts["settings"] != settings:
        return "remade", "its settings changed"
    return "remade", f"{', '.join(changed)} changed" if changed else "its version or seed changed"


def plan_side_by_side(run: Run, notebooks: Sequence[str], force: bool) -> tuple[list, dict]:
    """What these notebooks need and is not there yet, for a scheduler.

    (step, the steps among these that it needs, its share of the processor, its minutes, whether it
    is made anew though it is there) of each, and notebook → those that it waits for.
    """
    recipe = run.recipe
    steps = {n: notebook_steps(recipe, n) if n in NOTEBOOKS else [] for n in notebooks}
    # What a notebook only shows is not made anew.
    own = {s for n, names in steps.items() for s in names if notebook_of(s) == n}
    planned = plan(run, [name for names in steps.values() for name in names])
    todo = [p for p in planned if p.state != "reused" or (force and p.step in own)]
    there = {p.step for p in todo}
    shared = resolve_device(recipe.device) == "cpu"  # a GPU is for one step at a time
    beside = [shared and p.cost["threads"] == "half" and not p.cost["busy"] for p in todo]
    shares = [0.5 if possible else 1.0 for possible in beside]
    work = [
        (p.step, {*p.needs} & there, share, p.cost["minutes"], force and p.step in own)
        for p, share in zip(todo, shares, strict=True)
    ]
    return work, {n: {*order(recipe, names)} & there for n, names in steps.items()}


def render_plan(planned: Sequence[Planned]) -> str:
    """The graph as text: a line for each step, with what becomes of it, why, and what it needs."""
    lines = []
    for notebook in NOTEBOOKS:
        for step in planned:
            if step.notebook == notebook:
                needs = f"  ← {', '.join(step.needs)}" if step.needs else ""
                lines.append(f"{notebook[:2]}  {step.step:20} {step.state:9} {step.why}{needs}")
    return "\n".join(lines)
