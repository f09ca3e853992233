"""Attention in training: chosen by device, put back afterwards, the same function either way."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.training.attention import NAME, training_attention
from tests.builders import tiny_language_model, tiny_vocabulary

IDS = torch.tensor([[1, 5, 6, 7, 8, 9]])


@pytest.mark.parametrize(
    ("device", "packed", "expected"),
    [("cpu", False, "eager"), ("cpu", True, NAME), ("cuda", False, "sdpa"), ("mps", True, "sdpa")],
)
def test_the_device_decides_and_the_fused_one_comes_back(
    device: str, packed: bool, expected: str
) -> None:
    model = tiny_language_model(tiny_vocabulary())
    with pytest.raises(ZeroDivisionError), training_attention(model, device, packed=packed):
        assert model.config._attn_implementation == expected
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "sdpa"


def test_what_is_not_installed_is_named() -> None:
    model = tiny_language_model(tiny_vocabulary())
    if find_spec("flash_attn"):
        pytest.skip("flash_attn is installed here")
    message = "attention: flash_attention_2 can't be had here.*attention: auto"
    with pytest.raises(UserError, match=message):
        training_attention(model, "cpu", "flash_attention_2").__enter__()
    with training_attention(model, "cpu", "sdpa"):
        assert model.config._attn_implementation == "sdpa"


def test_both_compute_the_same() -> None:
    model = tiny_language_model(tiny_vocabulary()).eval()
    fused = model(IDS).logits
    with training_attention(model, "cpu"):
        assert torch.allclose(model(IDS).logits, fused, atol=1e-5)
