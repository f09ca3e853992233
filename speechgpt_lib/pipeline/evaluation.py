"""What a run is measured by: minimal pairs as units (notebook 06), all figures (notebook 09)."""

from __future__ import annotations

from speechgpt_lib.corpora.lab_pairs import write_lab_pairs
from speechgpt_lib.corpora.minimal_pairs import read_pairs
from speechgpt_lib.evaluation.judges import open_judge_settings
from speechgpt_lib.evaluation.measure import evaluate_run
from speechgpt_lib.evaluation.minimal_pairs import encode_recordings, names_of, save_recordings
from speechgpt_lib.pipeline.step import Cost, Definition, Job
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.artefacts import write_json


def make_minimal_pairs(job: Job) -> dict:
    """The lab's own minimal pairs, as sound and as units; none where the lab is no corpus."""
    if (lab := job.recipe.lab) is None:
        why = "its corpora are recordings: `speechgpt pairs` scores the published sets"
        return {"pairs": {}, "why": why}
    folder, inventory = job.work / "pairs", job.inventory()
    write_lab_pairs(folder, job.recipe.minimal_pairs, job.recipe.seed, lab.target_voice)
    pairs = read_pairs(folder)
    units = encode_recordings(folder, names_of(pairs), inventory, job.training.device)
    save_recordings(job.work, units, inventory.id)
    parts = [pair.part for pair in pairs]
    return {"pairs": {part: parts.count(part) for part in sorted(set(parts))}}


def _pairs_settings(recipe: Recipe) -> dict:
    lab = recipe.lab
    return {} if lab is None else {"count": recipe.minimal_pairs, "voice": lab.target_voice}


def make_evaluation(job: Job) -> dict:
    """Score the run on its held-out speech; examples and their sound lie in the step's folder."""
    result = evaluate_run(job.run, job.work, job.run.say)
    write_json(job.work / "examples.json", {"examples": result.pop("examples")})
    return result


def _evaluation_settings(recipe: Recipe) -> dict:
    # Weights in full precision are the rule, and not named.
    rounded = {"inference"} if recipe.inference.weights != "fp32" else set()
    included = {"evaluation", "generation"} | rounded
    return recipe.model_dump(mode="json", include=included) | open_judge_settings(recipe)


STEPS = (
    Definition(
        "minimal_pairs",
        ("inventory",),
        _pairs_settings,
        make_minimal_pairs,
        cost=Cost(gpu=True, minutes=0.8),
    ),
    Definition(
        "evaluation",
        ("corpus", "units", "inventory", "vocoder", "stage2", "stage3"),
        _evaluation_settings,
        make_evaluation,
        version=5,
        cost=Cost(gpu=True, busy=True, minutes=3.0),
    ),
)
