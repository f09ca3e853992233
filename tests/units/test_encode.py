"""A shard of utterances → units: what is batched with what, what is counted, what is set aside."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.units import encode
from speechgpt_lib.units.encode import Counts, Extraction, Item, ShardEncoder, plan_batches
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import Assigner, KMeansUnits
from speechgpt_lib.units.sequence import merge
from tests.units.test_features import make_encoder, noise


@pytest.fixture(scope="module")
def inventory() -> UnitInventory:
    model = make_encoder()
    plain = UnitInventory.create(model, 2, KMeansUnits(np.zeros((1, 32), np.float32)))
    return UnitInventory.create(model, 2, KMeansUnits(plain.features(noise(16_000, 9))[::2].copy()))


def items_of(*lengths: int) -> list[Item]:
    numbered = enumerate(lengths)
    return [Item({"id": str(k)}, n / 16_000, lambda n=n, k=k: noise(n, k)) for k, n in numbered]


@given(st.lists(st.floats(0.025, 60)), st.floats(1, 100))
def test_batches_hold_every_utterance_once_and_keep_to_the_budget(seconds, budget):
    batches = plan_batches(seconds, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(seconds)))
    assert all(
        len(batch) == 1 or len(batch) * max(seconds[i] for i in batch) <= budget
        for batch in batches
    )


@pytest.mark.parametrize("batch_s", [0.01, 0.5, 2.0, 100.0])
def test_rows_come_in_order_with_the_units_of_each_alone(inventory, batch_s):
    items = items_of(9000, 400, 16_000, 5321, 15_999)
    rows, bad, counts = ShardEncoder(inventory, Extraction(batch_s=batch_s)).encode(items)
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"] and not bad
    for row, item in zip(rows, items, strict=True):
        units, durations = inventory.encode(item.read())
        assert row["units"].tolist() == units.tolist()
        assert row["durations"].tolist() == durations.tolist()
    assert counts.utterances == 5 and counts.bad == 0
    assert counts.frames == sum(row["durations"].sum() for row in rows)
    assert counts.units == sum(len(row["units"]) for row in rows)
    assert counts.seconds == pytest.approx(sum(item.seconds for item in items))


def test_what_cannot_be_read_is_set_aside_with_its_reason(inventory):
    def broken() -> np.ndarray:
        raise UserError("x.flac has no samples")

    items = items_of(4000, 5000)
    items.insert(1, Item({"id": "x"}, 1.0, broken))
    rows, bad, counts = ShardEncoder(inventory, Extraction()).encode(items)
    assert [row["id"] for row in rows] == ["0", "1"]
    assert bad == [{"id": "x", "reason": "unreadable", "detail": "x.flac has no samples"}]
    assert (counts.utterances, counts.bad) == (2, 1)


def test_long_audio_is_counted_where_it_is_approximate_or_cut(inventory, monkeypatch):
    monkeypatch.setattr(encode, "WHOLE_S", 0.5)
    monkeypatch.setattr(encode, "RELEASE_CHUNK", 16_000)
    monkeypatch.setattr("speechgpt_lib.units.long_audio.RELEASE_CHUNK", 16_000)
    items = items_of(16_399, 4000)
    exact, windowed = (
        ShardEncoder(inventory, Extraction(batch_s=0.5, attention_limit_s=limit)).encode(items)
        for limit in (300, 1)
    )
    assert (exact[2].approximate, windowed[2].approximate) == (0, 1)
    assert exact[0][0]["units"].tolist() == inventory.encode(items[0].read())[0].tolist()
    release = ShardEncoder(inventory, Extraction(batch_s=50.0, long_audio="release")).encode(items)
    assert release[2].dropped_samples == 399 and release[0][0]["durations"].sum() == 49


def test_bf16_reports_its_misses(inventory, monkeypatch):
    monkeypatch.setattr(encode, "CHECK_EVERY", 2)
    items = items_of(16_000, 17_000, 18_000)
    encoder = ShardEncoder(inventory, Extraction(precision="bf16", batch_s=1.2))
    rows, _, counts = encoder.encode(items)
    assert counts.checked_frames == 49 + 56  # the first and the third of three batches
    exact = [inventory.kmeans.assign(inventory.features(items[i].read())) for i in (0, 2)]
    found = [np.repeat(rows[i]["units"], rows[i]["durations"]) for i in (0, 2)]
    assert counts.missed_frames == sum((a != b).sum() for a, b in zip(exact, found, strict=True))


def test_assignment_counts_near_ties():
    assign = Assigner(KMeansUnits(np.array([[0, 0], [2, 0], [9, 9]], np.float32)))
    units, near = assign([torch.tensor([[1.0, 0], [0.1, 0]]), torch.tensor([[8.0, 8.0]])])
    assert [u.tolist() for u in units][1] == [2] and units[0][1] == 0 and near == 1
    assert merge(units[0])[1].sum() == 2


def test_counts_add_up():
    total = Counts(utterances=1, frames=10).add({"utterances": 2, "frames": 5, "bad": 1})
    assert (total.utterances, total.frames, total.bad) == (3, 15, 1)
