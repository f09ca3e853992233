"""The vocoder's steps in a run: compared with and without discriminators, measured, for another
number of units, for every voice."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from speechgpt_lib.pipeline import vocoder as steps
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.run import Run
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.vocoder.synthesis import Vocoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copied(smoke_run, tmp_path_factory):
    """A run of its own, so that what is made here is in nobody's way."""
    path = tmp_path_factory.mktemp("steps") / "run"
    shutil.copytree(smoke_run, path, ignore=shutil.ignore_patterns("0[3-9]_*", "10_*", "notebooks"))
    return Run.open(path, say=lambda line: None)


def test_the_vocoder_is_compared_and_measured(copied):
    step = copied.require("vocoder")
    assert (step.path / steps.WITHOUT / "vocoder.json").is_file() and list(
        (step.path / "samples").glob("*.png")
    )
    assert not (step.path / "checkpoints").exists()
    figures = copied.require("vocoder_evaluation").metrics
    assert figures["utterances"] == 2
    for name in ("gold", "predicted"):
        assert {"mcd_db", "unit_round_trip", "wer", "wer_bigram"} <= figures[name].keys()
    assert {"lsd_db", "f0_rmse_hz", "voicing_error"} <= figures["gold"].keys()
    assert {"duration_error", "length_ratio"} <= figures["predicted"].keys()
    assert figures["original"]["wer"] < 0.5 < figures["gold"]["wer"], (
        "recordings are understood, the smoke recipe's noise is not"
    )
    assert figures["without_discriminators"]["gold"] != figures["gold"]


@pytest.mark.parametrize("where", ["train_durations", "Vocoder"])
def test_a_step_that_was_killed_resumes_to_the_same_files(copied, monkeypatch, where):
    """Killed between its trainings, or when all are done and nothing is saved."""
    step = make(copied, "vocoder", force=True)
    shutil.rmtree(step.path)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(steps, where, killed)
        make(copied, "vocoder")
    again = make(copied, "vocoder")
    assert again.facts["resumed"] and _without_log(again) == _without_log(step)


def _without_log(step) -> dict:
    """The hashes of a step's files but of its log, which holds seconds."""
    return {
        name: digest for name, digest in step.facts["outputs"].items() if name != "metrics.jsonl"
    }


def test_another_number_of_units_gets_a_vocoder_of_its_own(copied):
    step = make(copied, steps.with_clusters(7))
    inventory = UnitInventory.load(step.path / "inventory")
    assert (
        inventory.count == 7
        and step.metrics["id"] == inventory.id != copied.require("inventory").metrics["id"]
    )
    assert Vocoder.load(step.path, inventory.id).unit_count == 7
    assert step.metrics["gold"]["mcd_db"] > 0
    assert make(copied, steps.with_clusters(7)).facts["finished"] == step.facts["finished"]
    assert copied.require("vocoder").path != step.path


def test_every_voice_of_the_corpus_can_be_learned(copied, tmp_path):
    values = copied.recipe.model_dump(mode="json")
    values["vocoder"]["all_voices"] = True
    other = Run(copied.path, Recipe.model_validate(values), say=lambda line: None)
    step = make(other, "vocoder")
    vocoder = Vocoder.load(step.path)
    assert vocoder.speakers[0] == copied.recipe.corpora[0].target_voice
    assert set(vocoder.speakers) > {copied.recipe.corpora[0].target_voice}
    waves = [
        vocoder.synthesize([1, 2, 3], [5, 5, 5], speaker=name) for name in vocoder.speakers[:2]
    ]
    assert not np.array_equal(*waves)
