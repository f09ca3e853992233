"""An inventory from speech: one or two iterations of HuBERT, k-means, a table of choices."""

import json

import numpy as np

from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.hubert import cluster_layer, quality_grid, train_encoder
from tests.builders import few_steps, smoke_recipe, tiny_inventory
from tests.units.test_features import noise


def unit_settings(iterations: int = 1):
    units = smoke_recipe().units
    short = {"iterations": iterations, "optimization": few_steps(2)}
    short |= {"target_clusters": 6, "utterances": 6}
    update = {"hubert": units.hubert.model_copy(update=short), "layer": 1}
    return units.model_copy(update=update | {"clusters": 8, "kmeans_frames": 2000})


def test_the_second_iteration_learns_from_the_first(tmp_path):
    waves = [noise(40_000, k) for k in range(4)]
    options = TrainingOptions(seed=1)
    one, _, _ = train_encoder(waves, unit_settings(1), tmp_path / "one", options)
    two, targets, summary = train_encoder(waves, unit_settings(2), tmp_path / "two", options)
    assert summary["steps"] == summary["first"]["steps"] == 2
    assert targets.centroids.shape[1] == 39  # MFCCs: those of the first
    lines = (tmp_path / "two" / "metrics_second.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert any(not np.array_equal(a.detach(), b.detach()) for a, b in pairs)


def test_the_same_speech_and_seed_make_the_same_inventory(tmp_path):
    waves = [noise(40_000, k) for k in range(4)]

    def inventory(name, seed):
        options = TrainingOptions(seed=seed)
        encoder, _, _ = train_encoder(waves, unit_settings(), tmp_path / name, options)
        return cluster_layer(encoder, waves, unit_settings(), seed)

    first, second, other = inventory("a", 3), inventory("b", 3), inventory("c", 4)
    assert first.id == second.id != other.id and first.count == 8


def test_the_grid_has_a_row_for_every_layer_and_number_of_clusters():
    encoder = tiny_inventory().encoder
    phones = [(0.0, 0.5, "a"), (0.5, 1.0, "b")]
    held_out = [(noise(16_000, k), phones, "anna" if k % 2 else "peter") for k in range(8)]
    training = [noise(16_000, 50 + k) for k in range(4)]
    rows = list(quality_grid(encoder, training, held_out, [2, 4, 10_000], seed=0))
    assert [(row["layer"], row["clusters"]) for row in rows] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert all(0 <= row["pnmi"] <= 1 and 0 <= row["speaker_probe"] <= 1 for row in rows)
