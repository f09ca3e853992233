"""The step of notebook 09: everything a finished run is measured by."""

from __future__ import annotations

from speechgpt_lib.evaluation.judges import open_judge_settings
from speechgpt_lib.evaluation.measure import evaluate_run
from speechgpt_lib.pipeline.step import Cost, Definition, Job
from speechgpt_lib.runs.artefacts import write_json


def make_evaluation(job: Job) -> dict:
    """Score the run on its held-out speech; examples and their sound lie in the step's folder."""
    result = evaluate_run(job.run, job.work, job.run.say)
    write_json(job.work / "examples.json", {"examples": result.pop("examples")})
    return result


STEPS = (
    Definition(
        "evaluation",
        ("corpus", "units", "inventory", "vocoder", "stage2", "stage3"),
        lambda recipe: (
            recipe.model_dump(mode="json", include={"evaluation", "generation"})
            | open_judge_settings(recipe)
        ),
        make_evaluation,
        version=5,
        cost=Cost(gpu=True, threads="all", minutes=3.0),
    ),
)
