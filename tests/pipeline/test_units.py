"""The encoder learns to hear past voices where the target voice can say again what others said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from speechgpt_lib.corpora.lab import LabReader, plan_corpus, speak_all
from speechgpt_lib.corpora.speech import PLAIN
from speechgpt_lib.pipeline.graph import make_all
from speechgpt_lib.pipeline.step import Job
from speechgpt_lib.pipeline.units import hearing_of, twice_spoken
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
from speechgpt_lib.units.hearing import same_moments
from speechgpt_lib.units.hubert import mfcc_of
from speechgpt_lib.units.inventory import UnitInventory

RECORDED = {"corpora": [{"reader": "librispeech", "root": "LibriSpeech"}]}


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("smoke", {}, True),
        ("lab", {}, True),
        ("lab", {"units.hearing": None}, False),
        ("smoke", {"corpora.0.target_voice": "joe"}, False),
        ("smoke", RECORDED, False),
        ("release", {}, False),
    ],
)
def test_only_what_is_spoken_here_can_be_said_again(name, changes, expected) -> None:
    assert (hearing_of(load_recipe(name, changes)) is not None) == expected


@pytest.mark.slow
def test_others_get_the_units_of_the_target_voice(smoke_run) -> None:
    run = Run.open(smoke_run)
    inventory = UnitInventory.load(run.require("inventory").path)
    job = Job(run, run.path, {name: run.require(name) for name in ("corpus", "readings")})
    settings = hearing_of(run.recipe).model_copy(update={"own_utterances": 3})
    others, own = twice_spoken(job, inventory, settings)
    assert len(others) == settings.utterances and len(own) == 3
    for wave, units in (*others, *own):
        assert wave.dtype == np.int16 and len(units) == len(inventory.features(wave / 32768.0))
        assert units.min() >= 0 and units.max() < inventory.count


@pytest.mark.slow
def test_the_same_is_said_at_the_same_moment() -> None:
    recipe = load_recipe("smoke")
    many = [u for u in plan_corpus(recipe.corpora[0], recipe.seed) if u.manner != PLAIN]
    clean = [replace(u, manner=u.manner._replace(seed=None)) for u in many[:4]]
    spoken = [replace(u, manner=PLAIN) for u in speak_all(clean)]  # as in the table
    again = speak_all(LabReader(recipe.corpora[0]).in_target_voice(spoken, recipe.seed))
    fits = []
    for shift in (0, 6):  # 0.12 s
        for u, other in zip(spoken, again, strict=True):
            ours, theirs = mfcc_of(u.wave), mfcc_of(other.wave)
            moments = same_moments(u.phones, other.phones, len(ours), len(theirs))
            fits.append((ours * theirs[np.roll(moments, shift)])[8:-8, :13].mean())
    assert np.mean(fits[:4]) > 0.4 and np.mean(fits[:4]) > 2 * np.mean(fits[4:])


@pytest.mark.slow
def test_without_others_the_encoder_hears_what_it_has(tmp_path) -> None:
    """A lab in which the target voice is the only one that learns."""
    alone = {"aligned_voices": [], "unlabelled_voices": [], "many_statements": 0}
    changes = {f"corpora.0.{key}": value for key, value in (alone | {"many_questions": 0}).items()}
    (made,) = make_all(Run.create(tmp_path / "run", load_recipe("smoke", changes)), ["inventory"])
    assert made.metrics["hearing"]["steps"] == 4
