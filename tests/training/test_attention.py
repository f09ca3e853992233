"""Attention in training: chosen by device, put back afterwards, and the same function either way."""

from __future__ import annotations

import pytest
import torch

from speechgpt_lib.training.attention import training_attention
from tests.builders import tiny_language_model, tiny_vocabulary

IDS = torch.tensor([[1, 5, 6, 7, 8, 9]])


@pytest.mark.parametrize(("device", "expected"), [("cpu", "eager"), ("cuda", "sdpa")])
def test_the_device_decides_and_the_fused_one_comes_back(device: str, expected: str) -> None:
    model = tiny_language_model(tiny_vocabulary())
    with pytest.raises(ZeroDivisionError), training_attention(model, device):
        assert model.config._attn_implementation == expected
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "sdpa"


def test_both_compute_the_same() -> None:
    model = tiny_language_model(tiny_vocabulary()).eval()
    fused = model(IDS).logits
    with training_attention(model, "cpu"):
        assert torch.allclose(model(IDS).logits, fused, atol=1e-5)
