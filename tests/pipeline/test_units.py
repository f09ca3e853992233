"""The encoder learns to hear past voices where the target voice can say again what others said."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt_lib.pipeline.step import Job
from speechgpt_lib.pipeline.units import hearing_of, twice_spoken
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
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
def test_others_get_the_units_of_the_same_moment(smoke_run, monkeypatch) -> None:
    run = Run.open(smoke_run)
    inventory = UnitInventory.load(run.require("inventory").path)
    job = Job(run, run.path, {"corpus": run.require("corpus")})
    settings = hearing_of(run.recipe).model_copy(update={"utterances": 5, "own_utterances": 3})
    others, own = twice_spoken(job, inventory, settings)
    assert len(others) == 5 and len(own) == 3
    for wave, units in (*others, *own):
        assert wave.dtype == np.int16 and len(units) == len(inventory.features(wave / 32768.0))
        assert units.min() >= 0 and units.max() < inventory.count
