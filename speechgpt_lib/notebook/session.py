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
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.pipeline.step import Definition, OnLog
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
