"""The vocoder learns a voice from its recordings, in a copy; the run's own stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.recipes.schema import DurationSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.vocoder.durations import PUBLISHED, DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.voices.speaking import adapt_vocoder, likeness
from tests.builders import few_steps, smoke_recipe, spoken, tiny_inventory


@pytest.mark.slow
def test_a_copy_of_the_vocoder_comes_nearer_to_the_voice(tmp_path: Path):
    recipe, inventory = smoke_recipe(), tiny_inventory()
    torch.manual_seed(0)
    shape, count = recipe.vocoder, inventory.count
    durations = DurationPredictor(count, shape.embedding)
    vocoder = Vocoder(UnitGenerator(count, shape), durations, inventory.id, shape)
    waves = spoken("the big dog is in the house", "two is one", voice="Male1")
    settings = recipe.voice.model_copy(update={"speaking": few_steps(30, learning_rate=3e-3)})
    before = vocoder.synthesize([1, 2, 3], durations=[5, 5, 5])
    given = (vocoder, inventory, waves, settings)
    after, told = adapt_vocoder(*given, tmp_path / "a", TrainingOptions(seed=0))
    assert likeness(after, inventory, waves) < likeness(vocoder, inventory, waves)
    assert told.keys() == {"generator", "durations"} and after.inventory == inventory.id
    assert np.array_equal(vocoder.synthesize([1, 2, 3], durations=[5, 5, 5]), before)
    again, _ = adapt_vocoder(*given, tmp_path / "b", TrainingOptions(seed=0))
    units = inventory.encode(waves[0])[0]
    assert np.array_equal(again.synthesize(units), after.synthesize(units))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shown", [PUBLISHED, DurationSettings(convolutions=3, dropout=0.1, longest=20)]
)
def test_durations_of_either_kind_come_nearer_to_the_voice_s(shown, tmp_path: Path):
    recipe, inventory = smoke_recipe(), tiny_inventory()
    torch.manual_seed(0)
    shape, count = recipe.vocoder.model_copy(update={"durations": shown}), inventory.count
    durations = DurationPredictor(count, shape.embedding, settings=shown)
    vocoder = Vocoder(UnitGenerator(count, shape), durations, inventory.id, shape)
    waves = spoken("the big dog is in the house", "two is one", voice="Male1")
    settings = recipe.voice.model_copy(update={"speaking": few_steps(60, learning_rate=1e-2)})
    after, _ = adapt_vocoder(vocoder, inventory, waves, settings, tmp_path, TrainingOptions(seed=0))

    def off(of: Vocoder) -> float:
        heard = [inventory.encode(wave) for wave in waves]
        return sum(np.abs(of.predict_durations(units) - lasting).sum() for units, lasting in heard)

    assert off(after) < off(vocoder)
