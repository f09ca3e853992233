"""A frozen base in fewer bytes: nearly the same model, on which adapters learn."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import stages
from speechgpt_lib.language_model.adapters import (
    add_lora,
    attach_adapter,
    save_adapter,
    store_as,
)
from speechgpt_lib.language_model.inference import load_to_answer
from speechgpt_lib.language_model.model import save_model
from speechgpt_lib.language_model.planning import BYTES
from speechgpt_lib.language_model.rows import TokenRow
from speechgpt_lib.recipes.schema import LoraSettings, StageSettings
from speechgpt_lib.training.options import TrainingOptions
from tests.builders import few_steps, tiny_language_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
IDS = torch.randint(3, 300, (4, 30), generator=torch.Generator().manual_seed(0))


def fresh():
    return tiny_language_model(VOCABULARY, hidden_size=320, feed_forward=192)


@pytest.fixture(params=["bf16", "int8", "4bit"])
def base(request: pytest.FixtureRequest) -> str:
    if request.param != "bf16" and not find_spec("bitsandbytes"):
        if "bitsandbytes" in os.environ.get("SPEECHGPT_REQUIRE", ""):
            pytest.fail("bitsandbytes is required here, but it isn't installed")
        pytest.skip('bitsandbytes isn\'t installed: pip install "speechgpt_lib[quantized]"')
    return request.param


@torch.inference_mode()
def test_it_is_nearly_the_same_model_in_fewer_bytes(base: str) -> None:
    model = fresh()
    exact = model(IDS).logits
    matrices = sum(
        p.numel()
        for layer in model.model.layers
        for n, p in layer.named_parameters()
        if p.ndim == 2
    )
    store_as(model, base)
    found = model(IDS).logits.float()
    assert (found - exact).norm() / exact.norm() < {"bf16": 0.03, "int8": 0.05, "4bit": 0.3}[base]
    stored = sum(
        p.numel() * p.element_size()
        for layer in model.model.layers
        for n, p in layer.named_parameters()
        if "proj.weight" in n
    )
    assert stored == pytest.approx(BYTES[base] * matrices, rel=0.01)


def test_adapters_learn_on_it_and_fit_the_exact_base(base: str, tmp_path: Path) -> None:
    model = fresh()
    adapted = add_lora(
        model, LoraSettings(rank=4, base=base, targets=("q_proj", "v_proj", "down_proj")), seed=0
    )
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    rows = [TokenRow([1, *ids.tolist()], [0.0] + [1.0] * 30) for ids in IDS]
    settings = few_steps(25, learning_rate=1e-2, precision="bf16", warmup=0)
    stage, log = StageSettings(tokens_per_batch=200, optimization=settings), []
    options = TrainingOptions(seed=0, on_log=log.append)
    stages.fit(model, lambda epoch, step: rows, stage, tmp_path / "work", options)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    save_adapter(adapted, tmp_path / "adapter")
    exact = attach_adapter(
        fresh(), tmp_path / "adapter"
    )  # it belongs to the model, not to the way that was stored
    with torch.inference_mode():
        ours, theirs = (m(IDS).logits.float().log_softmax(-1) for m in (adapted.eval(), exact))
    assert (ours - theirs).abs().mean() < {"bf16": 0.05, "int8": 0.1, "4bit": 0.5}[base]


def test_without_bitsandbytes_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="base of int8 needs bitsandbytes.*lora.base: bf16"):
        store_as(fresh(), "int8")


@torch.inference_mode()
def test_a_finished_model_is_loaded_in_fewer_bytes(base: str, tmp_path: Path) -> None:
    """What `ask` holds, by `inference.weights`: as near to the model as what adapters learn on."""
    model = fresh()
    save_model(model, VOCABULARY, tmp_path)
    exact = model(IDS).logits
    loaded, vocabulary = load_to_answer(tmp_path, base)
    assert vocabulary.unit_count == VOCABULARY.unit_count
    found = loaded(IDS).logits.float()
    assert (found - exact).norm() / exact.norm() < {"bf16": 0.03, "int8": 0.05, "4bit": 0.3}[base]
    store_as(model, base)
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in model.parameters()}
