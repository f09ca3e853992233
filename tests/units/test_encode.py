"""A shard of utterances → units: what is batched with what, what is counted, what is set aside."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.training.batches import fill_batches
from speechgpt_lib.units import extract, long_audio
from speechgpt_lib.units.extract import ShardEncoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits, nearest
from speechgpt_lib.units.sequence import merge
from tests.units.test_features import make_encoder, noise


@pytest.fixture(scope="module")
def inventory() -> UnitInventory:
    model = make_encoder()
    plain = UnitInventory.create(model, 2, KMeansUnits(np.zeros((1, 32), np.float32)))
    return UnitInventory.create(model, 2, KMeansUnits(plain.features(noise(16_000, 9))[::2].copy()))


def speech_of(*lengths: int) -> list[SimpleNamespace]:
    """Utterances, as far as the encoder looks at them."""
    return [
        SimpleNamespace(seconds=n / 16_000, read=partial(noise, n, k))
        for k, n in enumerate(lengths)
    ]


@given(st.lists(st.floats(0.025, 60)), st.floats(1, 100))
def test_batches_hold_every_utterance_once_and_keep_to_the_budget(seconds, budget):
    by_length = sorted(range(len(seconds)), key=seconds.__getitem__)
    batches = fill_batches(by_length, seconds, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(seconds)))
    assert all(
        len(batch) == 1 or len(batch) * max(seconds[i] for i in batch) <= budget
        for batch in batches
    )


def encode(inventory, speech, **settings):
    return ShardEncoder(inventory, ExtractionSettings(**settings)).encode(speech)


@pytest.mark.parametrize("batch_seconds", [0.01, 0.5, 2.0, 100.0])
def test_rows_come_in_order_with_the_units_of_each_alone(inventory, batch_seconds):
    speech = speech_of(9000, 400, 16_000, 5321, 15_999)
    rows, counts = encode(inventory, speech, batch_seconds=batch_seconds)
    for row, u in zip(rows, speech, strict=True):
        units, durations = inventory.encode(u.read())
        assert row["units"].tolist() == units.tolist()
        assert row["durations"].tolist() == durations.tolist()
    assert counts.utterances == 5 and counts.bad == 0
    assert counts.frames == sum(row["durations"].sum() for row in rows)
    assert counts.units == sum(len(row["units"]) for row in rows)
    assert counts.seconds == pytest.approx(sum(u.seconds for u in speech))


def test_what_cannot_be_read_is_set_aside_with_its_reason(inventory):
    def broken() -> np.ndarray:
        raise UserError("x.flac has no samples")

    speech = speech_of(4000, 5000)
    speech.insert(1, SimpleNamespace(seconds=1.0, read=broken))
    (first, bad, last), counts = encode(inventory, speech)
    assert first["units"].tolist() == inventory.encode(speech[0].read())[0].tolist()
    assert last["units"].tolist() == inventory.encode(speech[2].read())[0].tolist()
    assert bad == {"reason": "unreadable", "detail": "x.flac has no samples"}
    assert (counts.utterances, counts.bad) == (2, 1)


def test_long_audio_is_counted_where_it_is_approximate_or_cut(inventory, monkeypatch):
    monkeypatch.setattr(extract, "WHOLE_S", 0.5)
    monkeypatch.setattr(extract, "RELEASE_CHUNK", 16_000)
    monkeypatch.setattr(long_audio, "RELEASE_CHUNK", 16_000)
    speech = speech_of(16_399, 4000)
    exact = encode(inventory, speech, batch_seconds=0.5)
    monkeypatch.setattr(long_audio, "ATTENTION_LIMIT_S", 1)
    windowed = encode(inventory, speech, batch_seconds=0.5)
    assert (exact[1].approximate, windowed[1].approximate) == (0, 1)
    assert exact[0][0]["units"].tolist() == inventory.encode(speech[0].read())[0].tolist()
    release = encode(inventory, speech, batch_seconds=50.0, long_audio="release")
    assert release[1].dropped_samples == 399 and release[0][0]["durations"].sum() == 49


def test_bf16_reports_its_misses(inventory, monkeypatch):
    monkeypatch.setattr(extract, "CHECK_EVERY", 2)
    speech = speech_of(16_000, 17_000, 18_000)
    rows, counts = encode(inventory, speech, precision="bf16", batch_seconds=1.2)
    assert counts.checked_frames == 49 + 56  # the first and the third of three batches
    exact = [inventory.kmeans.assign(inventory.features(speech[i].read())) for i in (0, 2)]
    found = [np.repeat(rows[i]["units"], rows[i]["durations"]) for i in (0, 2)]
    assert counts.missed_frames == sum((a != b).sum() for a, b in zip(exact, found, strict=True))


def test_assignment_counts_near_ties():
    centroids = torch.tensor([[0.0, 0], [2, 0], [9, 9]])
    frames = [torch.tensor([[1.0, 0], [0.1, 0]]), torch.tensor([[8.0, 8.0]])]
    units, near = nearest(centroids, frames)
    assert [u.tolist() for u in units][1] == [2] and units[0][1] == 0 and near == 1
    assert merge(units[0])[1].sum() == 2
