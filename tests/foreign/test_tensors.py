"""Tensors of a checkpoint: all of them tensors, and those that the model expects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.tensors import check_tensors, checkpoint_tensors

WHERE = Path("model.pt")
WANTED = {"a": torch.zeros(2), "b": torch.zeros(3, 1)}


@pytest.mark.parametrize("loaded", [{"model": {"a": torch.ones(2).half()}}, {"a": torch.ones(2)}])
def test_tensors_are_found_under_their_key_or_alone(loaded):
    found = checkpoint_tensors(loaded, "model", WHERE)
    assert list(found) == ["a"] and found["a"].dtype == torch.float32


@pytest.mark.parametrize("loaded", [{}, {"model": {}}, {"model": {"a": 1}}, {"model": [2], "x": 3}])
def test_anything_else_is_refused(loaded):
    with pytest.raises(UserError, match="model.pt holds .*expected a `model` with tensors only"):
        checkpoint_tensors(loaded, "model", WHERE)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "lacks a and 1 more"),
        ({"a": WANTED["a"]}, "lacks b:"),
        (WANTED | {"c": WANTED["a"]}, "holds c"),
        (WANTED | {"b": torch.zeros(3)}, r"b has shape \(3,\), expected \(3, 1\)"),
    ],
)
def test_what_differs_is_named(found, words):
    check_tensors(WANTED, WANTED, WHERE)
    with pytest.raises(UserError, match=f"model.pt.*{words}"):
        check_tensors(found, WANTED, WHERE)
