"""What a step of the graph is: its name, what it needs, what makes its key, what it costs, and the
function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.inventory import UnitInventory

OnLog = Callable[[dict], None] | None
Settings = Callable[[Recipe], Any]


def part(section: str, *names: str) -> Settings:
    """A section of the recipe, or those of its keys that are named, as what makes a step's key."""
    chosen = {section: set(names) or True}
    return lambda recipe: recipe.model_dump(mode="json", include=chosen)[section]


@dataclass(frozen=True)
class Job:
    """A step under way: its run, the folder `work` for its results, the finished steps that it
    needs, and of a step that may be split the `shards` that are made here."""

    run: Run
    work: Path
    inputs: Mapping[str, Step]
    on_log: OnLog = None
    shards: slice = field(default_factory=lambda: slice(None))

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.run.recipe

    @property
    def training(self) -> TrainingOptions:
        """How every training of this run is driven."""
        device = resolve_device(self.recipe.device)
        return TrainingOptions(self.recipe.seed, device, self.recipe.processes, self.on_log)

    def path(self, name: str) -> Path:
        """The folder of an input."""
        return self.inputs[name].path

    def inventory(self) -> UnitInventory:
        """The run's unit inventory."""
        return UnitInventory.load(self.path("inventory"))

    def corpora(self) -> Corpora:
        """The recipe's corpora, with their table where the step needs it."""
        table = self.path("corpus") if "corpus" in self.inputs else None
        return open_corpora(self.recipe, table, self.run.say)


Needs = tuple[str, ...] | Callable[[Recipe], tuple[str, ...]]


@dataclass(frozen=True)
class Cost:
    """Whether several processes can train a step, it gains by a GPU, or they can share its shards.

    `threads` on a CPU: "half", which leaves room for another step, or "all", where the others
    wait for it; they also do where it is `busy`, on all cores by processes of its own.  `minutes`:
    what it takes in `lab` on 2 cores, roughly; what runs side by side is ordered by them.
    """

    processes: bool = False
    gpu: bool = False
    splittable: bool = False
    threads: str = "half"
    busy: bool = False
    minutes: float = 0.5


def trained(minutes: float, threads: str = "half") -> Cost:
    """The cost of a step that trains."""
    return Cost(processes=True, gpu=True, threads=threads, minutes=minutes)


@dataclass(frozen=True)
class Definition:
    """One step of the graph.

    needs: names of the steps whose results it reads, perhaps by what the recipe says.
    settings: the part of the recipe that makes its key, as JSON values.
    make: writes the results into `job.work` and returns metrics.
    bring: the same from a file or folder that somebody else made, which `imports` names.
    bring_needs, bring_settings: what an import is checked against and depends on.
    splits: whether a splittable step has several shards under this recipe.
    """

    name: str
    needs: Needs
    settings: Settings
    make: Callable[[Job], dict | None]
    version: int = 1
    cost: Cost = field(default_factory=Cost)
    bring: Callable[[Job], dict | None] | None = None
    bring_needs: Needs = ()
    bring_settings: Settings = lambda recipe: None
    splits: Callable[[Recipe], bool] = lambda recipe: True

    def imported(self, recipe: Recipe) -> Any:
        """What the recipe imports instead of making this step, or None."""
        return getattr(recipe.imports, self.name) if self.bring is not None else None

    def in_parts(self, recipe: Recipe) -> bool:
        """Whether several processes may each make some of its shards."""
        return self.cost.splittable and self.splits(recipe)

    def inputs(self, recipe: Recipe) -> tuple[str, ...]:
        """The names of the steps that it needs under this recipe."""
        needs = self.needs if self.imported(recipe) is None else self.bring_needs
        return needs(recipe) if callable(needs) else needs
