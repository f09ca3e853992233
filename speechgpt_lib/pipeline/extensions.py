"""Beyond the paper: what the whole loses when one of the three stages is left out.

The rest is trained again without that stage and evaluated the same way.  Results lie under
`<run>/ablations/without_<stage>/`; the run itself is not touched.
"""

from __future__ import annotations

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.report import write_report
from speechgpt_lib.language_model.adapters import add_lora, save_adapter
from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.pipeline.graph import make, order
from speechgpt_lib.pipeline.step import Definition, Job
from speechgpt_lib.runs.run import Run

STAGES = ("stage1", "stage2", "stage3")


def ablate(run: Run, without: str) -> dict:
    """Train and evaluate `run` without one stage ("stage1", "stage2" or "stage3"); returns the
    report."""
    if without not in STAGES:
        raise UserError(f"unknown stage {without!r}: choose {', '.join(STAGES)}")
    made = set(order(run.recipe, ["evaluation"])) - {*STAGES, "evaluation"}
    steps = {name: name for name in made}
    # A stage is left out by letting the model before it stand in its place.
    steps["stage1"] = "expanded_model" if without == "stage1" else "stage1"
    if without != "stage1":
        steps["stage2"] = "stage1" if without == "stage2" else "stage2"
    forked = run.fork(run.path / "ablations" / f"without_{without}", run.recipe, steps)
    if without == "stage1":
        make(forked, "stage2")
    make(forked, SILENT_ADAPTER if without == "stage3" else "stage3")
    make(forked, "evaluation")
    return write_report(forked)


def _silent_adapter(job: Job) -> dict:
    """An adapter that changes nothing, in the place of stage 3's."""
    model, _ = load_model(job.path("stage2"))
    adapter = add_lora(model, job.recipe.stage3.lora, job.recipe.seed)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    save_adapter(adapter, job.work)
    return {}


SILENT_ADAPTER = Definition(
    "stage3", ("stage2",), lambda recipe: {"adapter": "none"}, _silent_adapter
)
