"""Likelihoods in batches equal those of one row at a time, computed the plain way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechgpt_lib.language_model import likelihood
from speechgpt_lib.language_model.likelihood import log_likelihoods, unit_log_likelihoods
from tests.builders import tiny_language_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()


def plain(model, ids: list[int], given: int) -> float:
    """Token by token, in float64: the probability of each after all before it."""
    total = 0.0
    for k in range(given, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:k]])).logits[0, -1].double()
        total += torch.log_softmax(logits, 0)[ids[k]].item()
    return total


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(VOCABULARY).eval()


def sequences(count: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 20, rng.integers(1, 30)) for _ in range(count)]


def test_rows_in_batches_equal_the_plain_way(model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1, *VOCABULARY.encode_units(units)] for units in sequences()]
    expected = [plain(model, row, 2) for row in rows]
    assert log_likelihoods(model, rows, 2) == pytest.approx(expected, abs=1e-4)
    few = 40 * model.config.vocab_size  # small batches
    monkeypatch.setitem(likelihood.MOST_LOGITS, "cpu", few)
    assert log_likelihoods(model, rows, 2) == pytest.approx(expected, abs=1e-4)


def test_transformers_own_loss_agrees(model) -> None:
    units = sequences(1)[0]
    ids = torch.tensor([[VOCABULARY.begin, *VOCABULARY.encode_units(units)]])
    labels = ids.clone()
    labels[:, :2] = -100  # not counted there
    with torch.no_grad():
        loss = model(ids, labels=labels).loss.item()
    assert unit_log_likelihoods(model, VOCABULARY, [units])[0] == pytest.approx(-loss, abs=1e-5)


def test_the_mean_counts_the_units_and_their_end(model) -> None:
    units = sequences(4)
    means = unit_log_likelihoods(model, VOCABULARY, units)
    totals = unit_log_likelihoods(model, VOCABULARY, units, per_token=False)
    again = [mean * (len(u) + 1) for mean, u in zip(means, units, strict=True)]
    assert again == pytest.approx(totals)


def test_nothing_gives_nothing(model) -> None:
    assert log_likelihoods(model, []) == []
