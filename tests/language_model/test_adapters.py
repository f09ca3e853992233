"""Adapters: saved and loaded bit for bit, embeddings included, on their own base only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.adapters import (
    add_lora,
    attach_adapter,
    load_adapter,
    model_id,
    save_adapter,
)
from speechgpt_lib.recipes.schema import LoraSettings
from tests.builders import tiny_language_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
NEW = range(VOCABULARY.text_size, VOCABULARY.size)
IDS = torch.tensor([[1, 5, 9, VOCABULARY.text_size + 3, VOCABULARY.marker("<eosp>"), 40]])


def base():
    return tiny_language_model(VOCABULARY)


def trained(new_tokens=()):
    """An adapter after a step of training."""
    adapted = add_lora(
        base(), LoraSettings(rank=2, alpha=4, dropout=0.0), seed=0, new_tokens=new_tokens
    )
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=5.0)
    for _ in range(2):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adapted.eval()


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("new_tokens", [(), NEW])
def test_reloaded_is_in_memory_bit_for_bit(tmp_path: Path, new_tokens) -> None:
    adapted = trained(new_tokens)
    save_adapter(adapted, tmp_path)
    expected = logits(adapted)
    assert not torch.equal(expected, logits(base().eval())), "the adapter does something"
    assert torch.equal(logits(attach_adapter(base(), tmp_path)), expected)
    assert torch.allclose(logits(load_adapter(base(), tmp_path)), expected, atol=1e-4)


def test_new_tokens_learn_and_old_ones_stay() -> None:
    before, after = (
        base().get_input_embeddings().weight,
        trained(NEW).merge_and_unload().get_input_embeddings().weight,
    )
    changed = (before != after).any(1)
    assert (
        not changed[: NEW.start].any()
        and changed[VOCABULARY.text_size + 3]
        and changed[VOCABULARY.marker("<eosp>")]
    )


def untied():
    """A model whose output layer has weights of its own, as the published ones."""
    model = base()
    model.config.tie_word_embeddings = False
    torch.manual_seed(0)
    return LlamaForCausalLM(model.config).eval()


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("gate_proj",), ("q_proj", "lm_head")])
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("make", [base, untied])
def test_new_tokens_learn_on_both_sides(tmp_path: Path, make, stored: str, targets) -> None:
    """What comes in and what goes out: the rows of both tables move and come back from disk."""
    options = {"rank": 2, "alpha": 4, "dropout": 0.0, "base": stored, "targets": targets}
    model, before = make(), make().state_dict()
    if make is base and "lm_head" in targets:
        with pytest.raises(UserError, match="targets has lm_head, but input and output .* share"):
            add_lora(model, LoraSettings(**options), 0, NEW)
        return
    adapted = add_lora(model, LoraSettings(**options), 0, NEW)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.3)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=stored == "bf16"):
            loss = adapted(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = logits(adapted.eval()).float()
    save_adapter(adapted, tmp_path)
    merged = attach_adapter(make(), tmp_path, trust=True).merge_and_unload().eval()
    assert torch.allclose(logits(merged), expected, atol=1e-4 if stored == "fp32" else 0.1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        moved = (merged.state_dict()[name] != before[name]).any(1)
        assert moved[VOCABULARY.marker("<eosp>")] and moved[VOCABULARY.text_size + 3], name
        assert not moved[: NEW.start].any() or name.partition(".")[0] in targets, name


def test_unmerged_is_the_base_again(tmp_path: Path) -> None:
    adapted = trained()
    expected = logits(adapted)
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted), expected, atol=1e-4)
    adapted.unmerge_adapter()
    assert torch.allclose(logits(adapted), expected, atol=1e-4)
    with adapted.disable_adapter():
        assert torch.allclose(logits(adapted), logits(base().eval()), atol=1e-4)


def test_another_base_is_refused(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    other = tiny_language_model(VOCABULARY, seed=4)
    assert model_id(other) != model_id(base()) == model_id(base())
    with pytest.raises(
        UserError, match=f"belongs to the base model {model_id(base())}, this is {model_id(other)}"
    ):
        load_adapter(other, tmp_path)
    with pytest.raises(UserError, match="belongs to the base model"):
        load_adapter(tiny_language_model(tiny_vocabulary(units=0)), tmp_path)


def test_damaged_adapters(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="does not fit|damaged"):
        load_adapter(base(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json is not valid JSON"):
        load_adapter(base(), tmp_path)
    with pytest.raises(UserError, match="notebook 08"):
        load_adapter(base(), tmp_path / "none")


def test_a_target_that_is_none() -> None:
    with pytest.raises(UserError, match="targets"):
        add_lora(base(), LoraSettings(targets=("wings",)), seed=0)


def test_what_is_written_down(tmp_path: Path) -> None:
    save_adapter(trained(NEW), tmp_path)
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == model_id(base())
