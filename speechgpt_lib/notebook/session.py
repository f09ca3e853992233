"""The session cell of a notebook: its parameters → an open run, and what a reader of the output must know."""

from __future__ import annotations

import os
import platform
import random
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import speechgpt_lib
from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.figure import show_table, use_house_style
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.pipeline.step import Definition, OnLog
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.inventory import UnitInventory


@dataclass(frozen=True)
class Session:
    """The open run of a notebook; `device` ("cpu", "cuda", "mps") is resolved, `force` is for `run.step`."""

    run: Run
    device: str
    force: bool

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    def make(self, step: str | Definition, on_log: OnLog = None) -> Step:
        """The finished step `step` ("units"), made unless it is there already; what it needs must be finished."""
        return make(self.run, step, self.force, on_log)

    def require(self, *names: str) -> dict[str, Step]:
        """The finished steps by name; UserError says how to make a missing one."""
        found = {name: self.run.require(name) for name in names}
        for step in found.values():
            made = f"made {step.facts['finished'][:16]}, {step.facts['wall_seconds']:.0f} s"
            print(f"found    {step.name} ({made})")
        return found

    def inventory(self) -> UnitInventory:
        """The run's unit inventory."""
        return UnitInventory.load(self.run.require("inventory").path)

    def corpora(self) -> Corpora:
        """The recipe's corpora: their text, their questions, their judges."""
        corpus = self.run.find("corpus")
        return open_corpora(self.recipe, corpus and corpus.path)

    def media(self, notebook: str) -> Path:
        """The folder for a notebook's figures and clips as files: <run>/notebooks/media/<notebook>."""
        return self.run.path / "notebooks" / "media" / notebook


def start(
    recipe: str,
    run_dir: str,
    seed: int | None = None,
    device: str | None = None,
    force: bool = False,
) -> Session:
    """Open the run directory for a recipe and print versions, device, threads, seed and where the results go.

    `seed` and `device` replace the recipe's when given.  Random numbers of Python, numpy and torch start at the seed.

    Raises UserError for an unknown recipe or device, or a folder that can't be written.
    """
    settings = load_recipe(recipe, {} if seed is None else {"seed": seed})
    allowed = get_args(Recipe.model_fields["device"].annotation)
    if device is not None and device not in allowed:
        raise UserError(f"unknown device {device!r}: choose {', '.join(allowed)}")
    settings = settings.model_copy(update={"device": device or settings.device})
    run = Run.create(Path(run_dir).expanduser().absolute(), settings)
    session = Session(run, resolve_device(settings.device), force)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    use_house_style()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"speechgpt_lib {speechgpt_lib.__version__} ({versions})")
    print(f"recipe   {settings.name}, seed {settings.seed}: {settings.summary}")
    print(f"device   {session.device}, {torch.get_num_threads()} threads")
    print(f"results  {os.path.relpath(run.path)}{' (made anew: force is on)' if force else ''}")
    return session


def show_results(session: Session, folder: str) -> None:
    """A table of what the steps in `folder` ("01_unit_extraction") left behind: file, size, hash and cost."""
    rows = [
        {
            "step": step.name,
            "file": name,
            "MB": known["bytes"] / 1e6,
            "sha256": known["sha256"][:8],
            "step took": f"{step.facts['wall_seconds']:.0f} s, {step.facts['peak_memory_mb']:.0f} MB",
        }
        for step in session.run.steps()
        if step.name.startswith(folder + "/")
        for name, known in step.facts["outputs"].items()
    ]
    if not rows:
        print(f"nothing in {folder} yet")
        return
    show_table(rows, f"What {folder} holds in the run directory.")
