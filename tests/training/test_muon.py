"""Muon on all matrices of one shape at once: the same update as one by one, resumable."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from speechgpt_lib.training import muon
from speechgpt_lib.training.muon import Muon, orthogonal

SETTINGS = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}


def matrices(seed: int) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (5, 5), (2, 9)]
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()


def test_the_polynomials_move_singular_values_alone_and_near_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 7)
    for given, found in zip(x.double().numpy(), orthogonal(x).numpy(), strict=True):
        left, values, right = np.linalg.svd(given / np.linalg.norm(given), full_matrices=False)
        np.testing.assert_allclose(found, left @ np.diag(polish(values)) @ right, atol=2e-5)
    values = polish(np.geomspace(0.005, 1, 2000))
    assert abs(values - 1).max() < 0.09


def polish(values: np.ndarray) -> np.ndarray:
    """What the polynomials make of singular values."""
    for a, b, c in muon.POLYNOMIALS:
        values = a * values + b * values**3 + c * values**5
    return values


def test_all_at_once_is_one_by_one() -> None:
    together, alone = matrices(1), matrices(1)
    train(Muon(together, **SETTINGS), together, range(5))
    for k, weight in enumerate(alone):
        optimizer = Muon([weight], **SETTINGS)
        for step in range(5):
            torch.manual_seed(step)
            weight.grad = [torch.randn(other.shape) for other in alone][k]
            optimizer.step()
    for own, other in zip(together, alone, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_goes_where_torchs_goes() -> None:
    start, ours, theirs = (matrices(1) for _ in range(3))
    train(Muon(ours, **SETTINGS), ours, range(5))
    train(torch.optim.Muon(theirs, **SETTINGS), theirs, range(5))
    for before, own, other in zip(start, ours, theirs, strict=True):
        cosine = torch.cosine_similarity((own - before).flatten(), (other - before).flatten(), 0)
        assert cosine > 0.95


def test_one_without_gradient_stays_and_state_is_torchs() -> None:
    weights = matrices(2)
    frozen, before = weights.pop(), matrices(2)[-1]
    optimizer = Muon([*weights, frozen], **SETTINGS)
    train(optimizer, weights, range(2))
    assert torch.equal(frozen, before)
    assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())


def test_goes_on_from_a_saved_state() -> None:
    whole, halves = matrices(3), matrices(3)
    train(Muon(whole, **SETTINGS), whole, range(6))
    first = Muon(halves, **SETTINGS)
    train(first, halves, range(3))
    second = Muon(halves, **SETTINGS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, halves, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


@pytest.mark.parametrize(
    ("extensions", "dtype"), [(["avx2"], "float32"), (["amx_bf16"], "bfloat16")]
)
def test_bf16_only_where_the_processor_computes_in_it(monkeypatch, extensions, dtype) -> None:
    facts = {"name": "", "family": 1, "model": 1, "extensions": extensions}
    monkeypatch.setattr("speechgpt_lib.training.devices.cpu_facts", lambda: facts)
    monkeypatch.setattr("speechgpt_lib.training.devices.bf16_gain", lambda: 2.0)
    muon.dtype_on.cache_clear()
    assert muon.dtype_on("cpu") == getattr(torch, dtype)
    muon.dtype_on.cache_clear()
