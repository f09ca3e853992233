"""The encoder learns up to the layer of the units; all else stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.recipes.schema import VoiceSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.hearing import UNKNOWN, Crops
from speechgpt_lib.units.kmeans import fit_kmeans
from speechgpt_lib.voices.changes import changed
from speechgpt_lib.voices.hearing import adapt_encoder, drawing
from tests.builders import few_steps, spoken, tiny_inventory

TEXTS = ["the big dog is in the house", "anna has the lion", "what is two plus three"]
SETTINGS = VoiceSettings(crops=4, crop_seconds=1.0, listening=few_steps(9))


def inventory():
    """Units that follow what is said: clusters of the frames of one voice."""
    made = tiny_inventory()
    frames = list(map(made.features, spoken(*TEXTS)))
    return replace(made, kmeans=fit_kmeans(frames, 12, 0))


@pytest.mark.slow
def test_only_the_layers_of_the_units_learn_and_units_keep_their_meaning(tmp_path: Path):
    before = inventory()
    known = spoken(*TEXTS)
    tinny = [np.float32(np.convolve(wave, [1, -0.95])[: len(wave)]) for wave in known]
    references = [before.features(wave) for wave in known]
    options = TrainingOptions(seed=0)
    given = (before, tinny, references, known, SETTINGS, tmp_path, options)
    after, summary = adapt_encoder(*given)

    assert after.id == before.id and after.kmeans is before.kmeans, "the units mean what they did"
    assert summary["steps"] == 6 and summary["loss"] > 0
    old, new = before.encoder.state_dict(), after.encoder.state_dict()
    same = {name for name in old if torch.equal(old[name], new[name])}
    above = {name for name in old if name.startswith("encoder.layers.1.")}
    assert above and above <= same, "layers above the units' are not touched"
    assert not any(name.startswith("encoder.layers.0.attention.q_proj.w") for name in same)
    again, _ = adapt_encoder(*given[:5], tmp_path / "again", options)
    assert all(torch.equal(new[n], t) for n, t in again.encoder.state_dict().items())


def test_crops_keep_sound_and_units_together():
    """Of a recording that is played faster, the units are, too; padding has none."""
    made = inventory()
    (wave,) = spoken(TEXTS[1])
    units = made.kmeans.assign(made.features(wave))
    both = [(wave, units)], [(wave[:8000], units[:24])]
    crops = Crops(made, drawing(*both, share=0.5), count=4, seconds=1.0, seed=0)
    waves, targets = crops(0)
    assert waves.shape == (4, (crops.frames - 1) * 320 + 400) and targets.shape == (4, 50)
    assert torch.equal(crops(0)[0], waves) and not torch.equal(crops(1)[0], waves)
    waves, targets = Crops(made, drawing(*both, share=0.0), 4, 1.0, seed=0)(0)
    assert (targets[:, 24:] == UNKNOWN).all()
    assert (targets[:, :24] == torch.tensor(units[:24])).all()
    assert not waves[:, 8000:].any()


def test_a_version_lasts_as_its_rate_says():
    (wave,) = spoken(TEXTS[0], voice="Male1")
    for seed in range(5):
        out, rate = changed(wave, np.random.default_rng(seed))
        assert abs(len(out) * rate - len(wave)) < 10 and out.dtype == np.float32
        assert np.isfinite(out).all() and 0.87 < rate < 1.15
