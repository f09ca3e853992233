"""Which frame of another reading says the same; and that the encoder learns to hear it so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.corpora.audio import to_16_bits
from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.recipes.schema import HearingSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.hearing import hear_past_voices, same_moments
from speechgpt_lib.units.kmeans import fit_kmeans
from tests.builders import few_steps, spoken, tiny_inventory


def reading(start: float, *lengths: float) -> list[Phone]:
    ends = np.cumsum([start, *lengths])
    return [Phone(a, b, label) for a, b, label in zip(ends, ends[1:], "abcdef", strict=False)]


def test_a_reading_is_its_own() -> None:
    own = reading(0.3, 0.2, 0.1, 0.4)
    assert same_moments(own, own, 60, 60).tolist() == list(range(60))


def test_a_reading_at_half_the_speed() -> None:
    slow, fast = reading(0.0, 0.4, 0.8), reading(0.0, 0.2, 0.4)
    found = same_moments(slow, fast, 60, 30)
    assert np.abs(found - np.arange(60) / 2).max() <= 1 and found.max() <= 29
    assert (np.diff(found) >= 0).all()


def test_phones_meet_whatever_stands_before() -> None:
    own, other = reading(0.1, 0.2, 0.2), reading(0.3, 0.1, 0.4)
    found = same_moments(own, other, 30, 60)
    assert found[14] in (19, 20)  # the border at 0.3 s here is at 0.4 s there
    assert found[0] == 10  # 0.0 s here is as far before the first phone as 0.2 s there
    assert found[29] == pytest.approx(44, abs=1)


def test_other_phones_are_refused() -> None:
    with pytest.raises(ValueError, match="different phones"):
        same_moments(reading(0, 0.1), reading(0, 0.1, 0.1), 10, 10)


@pytest.mark.slow
def test_the_encoder_learns_units_of_one_voice_for_what_others_say(tmp_path: Path) -> None:
    made = tiny_inventory()
    own = spoken("anna has the lion", "where is the dog")
    made = replace(made, kmeans=fit_kmeans(list(map(made.features, own)), 12, 0))
    units = [made.kmeans.assign(made.features(wave)) for wave in own]
    tinny = [np.float32(np.convolve(wave, [1, -0.95])[: len(wave)]) for wave in own]
    others = [(to_16_bits(wave), u) for wave, u in zip(tinny, units, strict=True)]
    settings = HearingSettings(crops=4, perturbed=0.0, optimization=few_steps(40))
    known = list(zip(own, units, strict=True))

    def learn(work: Path):
        return hear_past_voices(made, others, known, settings, work, TrainingOptions(seed=0))

    heard, summary = learn(tmp_path / "one")
    assert summary["steps"] == 40 and heard.id != made.id and heard.kmeans is made.kmeans

    def right(inventory) -> float:
        said = [inventory.kmeans.assign(inventory.features(wave)) for wave in tinny]
        return float(np.mean(np.concatenate(said) == np.concatenate(units)))

    assert right(heard) > right(made) + 0.1
    again, _ = learn(tmp_path / "two")
    assert again.id == heard.id, "the same seed makes the same encoder"
    first = heard.encoder.state_dict()
    assert not torch.equal(
        first["feature_extractor.conv_layers.0.conv.weight"],
        made.encoder.state_dict()["feature_extractor.conv_layers.0.conv.weight"],
    )
