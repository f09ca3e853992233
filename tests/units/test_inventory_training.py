"""An inventory from speech: one or two iterations of HuBERT, k-means, the samples they see."""

import json

import numpy as np
import pytest
import soundfile

from speechgpt_lib.corpora.prepare import prepare
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.grid import quality_grid
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.training import sample_segments, train_encoder, train_on_corpus
from tests.builders import few_steps, smoke_recipe, tiny_inventory
from tests.units.test_features import noise


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    base = tmp_path_factory.mktemp("speech")
    chapter = base / "root" / "train-clean-100" / "7" / "9"
    chapter.mkdir(parents=True)
    for k in range(12):
        soundfile.write(chapter / f"7-9-{k:04d}.flac", 0.3 * noise(40_000 + 500 * k, k), 16_000)
    (chapter / "7-9.trans.txt").write_text("".join(f"7-9-{k:04d} HELLO\n" for k in range(12)))
    prepare("librispeech", base / "root", base / "table", shard_size=5)
    return base / "table", base / "root"


def unit_settings(iterations: int = 1):
    units = smoke_recipe().units
    short = {"iterations": iterations, "optimization": few_steps(2)}
    short |= {"target_clusters": 6, "utterances": 6}
    update = {"hubert": units.hubert.model_copy(update=short), "layer": 1}
    return units.model_copy(update=update | {"clusters": 8, "kmeans_frames": 2000})


def test_a_corpus_becomes_an_inventory_and_again_the_same(table, tmp_path):
    first, second = (
        train_on_corpus(*table, unit_settings(), tmp_path / name, TrainingOptions(seed=3))
        for name in "ab"
    )
    assert first.id == second.id == UnitInventory.load(tmp_path / "a" / "inventory").id
    assert first.count == 8
    other = train_on_corpus(*table, unit_settings(), tmp_path / "c", TrainingOptions(seed=4))
    assert other.id != first.id


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


def test_a_sample_is_a_function_of_the_ids(table, tmp_path):
    ids = [segment.id for segment in sample_segments(table[0], 5, seed=1)]
    assert len(set(ids)) == 5 and ids != sorted(ids)
    prepare("librispeech", table[1], tmp_path / "again", shard_size=100)
    assert [segment.id for segment in sample_segments(tmp_path / "again", 5, seed=1)] == ids
    assert [segment.id for segment in sample_segments(table[0], 5, seed=2)] != ids
    assert len(sample_segments(table[0], 99, seed=1)) == 12


def test_the_grid_has_a_row_for_every_layer_and_number_of_clusters():
    encoder = tiny_inventory().encoder
    phones = [(0.0, 0.5, "a"), (0.5, 1.0, "b")]
    held_out = [(noise(16_000, k), phones, "anna" if k % 2 else "peter") for k in range(8)]
    training = [noise(16_000, 50 + k) for k in range(4)]
    rows = list(quality_grid(encoder, training, held_out, [2, 4, 10_000], seed=0))
    assert [(row["layer"], row["clusters"]) for row in rows] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert all(0 <= row["pnmi"] <= 1 and 0 <= row["speaker_probe"] <= 1 for row in rows)
