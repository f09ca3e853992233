"""What the whole loses when one of the three stages is left out: the rest is trained again without it and evaluated the same way.

Results lie under `<run>/ablations/without_<stage>/`; the run itself is not touched.
"""

from __future__ import annotations

import torch

from speechgpt_lib import pipeline
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.report import make_evaluation, write_report
from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.language_model.stages import add_lora, save_adapter
from speechgpt_lib.runs.run import Run

STAGES = ("stage1", "stage2", "stage3")
_SHARED = (
    pipeline.CORPUS,
    pipeline.HUBERT,
    pipeline.INVENTORY,
    pipeline.UNITS,
    pipeline.VOCODER,
    pipeline.CROSS_MODAL_SET,
    pipeline.TEXT_TO_UNIT,
    pipeline.CHAIN_SET,
    pipeline.TEXT_MODEL,
    pipeline.EXPANDED,
)


def ablate(run: Run, without: str) -> dict:
    """Train and evaluate `run` without one stage ("stage1", "stage2" or "stage3"); returns the report."""
    if without not in STAGES:
        raise UserError(f"unknown stage {without!r}: choose {', '.join(STAGES)}")
    # A stage is left out by letting the model before it stand in its place.
    steps = {name: name for name in _SHARED}
    steps[pipeline.STAGE1] = pipeline.EXPANDED if without == "stage1" else pipeline.STAGE1
    if without == "stage2":
        steps[pipeline.STAGE2] = pipeline.STAGE1
    elif without == "stage3":
        steps[pipeline.STAGE2] = pipeline.STAGE2
    forked = run.fork(run.path / "ablations" / f"without_{without}", run.recipe, steps)
    if without == "stage1":
        pipeline.make_stage2(forked)
    if without == "stage3":
        _silent_adapter(forked)
    else:
        pipeline.make_stage3(forked)
    make_evaluation(forked)
    return write_report(forked)


def _silent_adapter(run: Run) -> None:
    """An adapter that changes nothing, in the place of stage 3's."""
    stage2 = run.require(pipeline.STAGE2)

    def make(work) -> dict:
        model, _ = load_model(stage2.path)
        adapter = add_lora(model, run.recipe.stage3.lora, run.recipe.seed)
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
        save_adapter(adapter, work)
        return {}

    run.step(pipeline.STAGE3, make, settings={"adapter": "none"}, inputs={"model": stage2})
