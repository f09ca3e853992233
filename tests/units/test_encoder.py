"""From sound to units: frames, layers, the inventory's identity, extraction that resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.corpora.lab import plan_corpus, speak
from speechgpt_lib.corpora.tables import write_shard
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.extract import extract_units, read_units
from speechgpt_lib.units.hubert import frame_count, pretrain_hubert, sample_mask
from speechgpt_lib.units.inventory import UnitInventory, check_inventory
from speechgpt_lib.units.kmeans import KMeansUnits, fit_kmeans
from speechgpt_lib.units.mfcc import mfcc
from tests.builders import few_steps, noise, smoke_recipe, tiny_inventory


@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 16_123])
def test_mfcc_and_encoder_have_the_same_frames(samples: int) -> None:
    wave = noise(2)[:samples]
    inventory = tiny_inventory()
    frames = len(inventory.features(wave))
    assert frames == len(mfcc(torch.from_numpy(wave))) == frame_count(samples)
    _, durations = inventory.encode(wave)
    assert durations.sum() == frame_count(samples)


def test_the_inventory_is_named_by_all_it_depends_on(tmp_path: Path) -> None:
    inventory = tiny_inventory()
    (tmp_path / "inventory").mkdir()
    inventory.save(tmp_path / "inventory")
    loaded = UnitInventory.load(tmp_path / "inventory")
    wave = noise(1)
    assert loaded.id == inventory.id
    assert np.array_equal(loaded.encode(wave)[0], inventory.encode(wave)[0])
    others = {tiny_inventory(layer=2).id, tiny_inventory(seed=1).id, tiny_inventory(clusters=19).id}
    assert len(others | {inventory.id}) == 4
    moved = KMeansUnits(inventory.kmeans.centroids + 1)
    moved.save(tmp_path / "inventory" / "centroids.safetensors")
    with pytest.raises(UserError, match="was changed"):
        UnitInventory.load(tmp_path / "inventory")
    with pytest.raises(UserError, match="aaa.*bbb"):
        check_inventory("bbb", "aaa", "this test")


def test_parts_that_do_not_fit_are_refused() -> None:
    encoder = tiny_inventory().encoder
    with pytest.raises(UserError, match="layer 9"):
        UnitInventory.create(encoder, 9, KMeansUnits(np.zeros((3, 32), np.float32)))
    with pytest.raises(UserError, match="width 7"):
        UnitInventory.create(encoder, 1, KMeansUnits(np.zeros((3, 7), np.float32)))
    with pytest.raises(UserError, match="too short"):
        tiny_inventory().encode(np.zeros(399, np.float32))


def test_kmeans_finds_clusters_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    clouds = np.concatenate([c + rng.normal(scale=0.1, size=(50, 2)) for c in centres])
    features = clouds.astype(np.float32)
    first, again = (fit_kmeans([features], 3, seed=0) for _ in range(2))
    assert np.array_equal(first.centroids, again.centroids)
    assert len(set(first.assign(centres).tolist())) == 3
    brute = ((features[:, None] - first.centroids[None]) ** 2).sum(-1).argmin(1)
    assert np.array_equal(first.assign(features), brute)
    with pytest.raises(UserError, match="cannot make"):
        fit_kmeans([np.zeros((2, 2), np.float32)], 3, seed=0)


def test_masks_are_spans_of_the_wanted_share() -> None:
    torch.manual_seed(0)
    mask = sample_mask(200, 74, 0.065, 10)
    assert 0.35 < mask.float().mean() < 0.55
    runs = torch.diff(torch.nn.functional.pad(mask.int(), (1, 1)), dim=1)
    assert (runs == 1).sum() == (runs == -1).sum()


def test_pretraining_is_repeatable(tmp_path: Path) -> None:
    update = {"optimization": few_steps(2), "target_clusters": 5}
    settings = smoke_recipe().units.hubert.model_copy(update=update)
    waves = [noise(2, seed) for seed in range(4)]
    options = TrainingOptions(seed=1)
    encoders = [pretrain_hubert(waves, settings, tmp_path / k, options)[0] for k in "ab"]
    states = [encoder.state_dict() for encoder in encoders]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_extraction_keeps_whole_shards_and_refuses_other_inventories(tmp_path: Path) -> None:
    inventory = tiny_inventory()
    for folder in ("corpus", "inventory", "units"):
        (tmp_path / folder).mkdir()
    inventory.save(tmp_path / "inventory")
    plan = plan_corpus(smoke_recipe().corpora[0], 0)[:4]
    for k in range(2):
        shard = tmp_path / "corpus" / f"utterances-{k:05d}.parquet"
        write_shard(shard, map(speak, plan[2 * k : 2 * k + 2]))
    folders = (tmp_path / "corpus", tmp_path / "inventory", tmp_path / "units")
    facts = extract_units(*folders, ExtractionSettings())
    rows = list(read_units(tmp_path / "units", inventory.id))
    assert facts["utterances"] == 4 and [r.id for r in rows] == [u.id for u in plan]
    assert sum(len(r.frames) for r in rows) == facts["frames"]
    files = sorted((tmp_path / "units").iterdir())
    stamp, content = files[0].stat().st_mtime_ns, files[1].read_bytes()
    files[1].unlink()
    extract_units(*folders, ExtractionSettings())
    assert files[0].stat().st_mtime_ns == stamp and files[1].read_bytes() == content
    with pytest.raises(UserError, match="inventory"):
        next(read_units(tmp_path / "units", "another"))
