"""The plan against what a training really keeps, and the published figures it must come to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import planning
from speechgpt_lib.language_model.adapters import add_lora
from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.language_model.planning import (
    Shape,
    activation_bytes,
    full_memory,
    lora_memory,
    plan,
    render,
)
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import LoraSettings

SMALL = Shape(vocabulary=3000, hidden_size=256, layers=4, heads=8, feed_forward=688)
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def small_model(shape: Shape, checkpointing: bool = False) -> LlamaForCausalLM:
    config = shape.config(max_position_embeddings=1024, attn_implementation="sdpa")
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def kept_by_autograd(run, parameters) -> int:
    """Bytes of all tensors that the forward pass saves for the backward pass.

    Each storage counts once, weights not at all.
    """
    weights, storages = {p.untyped_storage().data_ptr() for p in parameters}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run()
    size = sum(nbytes for nbytes, _ in storages.values())
    loss.backward()
    return size


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(tied: bool) -> None:
    shape = Shape(500, 64, 3, 4, 160, tied)
    assert shape.parameters == sum(p.numel() for p in small_model(shape).parameters())


SHAPES = {  # published shapes, in small or in full: what config.json says
    "llama-2-7b": dict(vocab_size=32000, num_key_value_heads=32),
    "llama-3-8b": dict(vocab_size=128256, num_key_value_heads=8, intermediate_size=14336),
    "llama-3.2-1b": dict(
        vocab_size=128256,
        num_key_value_heads=8,
        intermediate_size=8192,
        hidden_size=2048,
        num_hidden_layers=16,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "one-key-head": dict(vocab_size=32000, num_key_value_heads=1),
    "wide-heads": dict(vocab_size=32000, head_dim=256, num_attention_heads=8),
}


def folder_of(name: str, folder: Path) -> Path:
    large = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
    large |= dict(intermediate_size=11008) | SHAPES[name]
    LlamaConfig(**large).save_pretrained(folder / name)
    return folder / name


@pytest.mark.parametrize("stage2", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_is_that_of_the_folder(tmp_path: Path, name: str, stage2: bool) -> None:
    folder = folder_of(name, tmp_path)
    changes = {"imports.stage2" if stage2 else "imports.text_model": str(folder)}
    shape = Shape.of(load_recipe("release", changes))
    config = LlamaConfig.from_pretrained(folder)
    # Without tokenizer.model: units and all ten markers.
    config.vocab_size += 0 if stage2 else 1000 + 10
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    lora = LoraSettings(targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"))
    trainable = sum(
        lora.rank * (m.in_features + m.out_features)
        for n, m in model.named_modules()
        if n.rpartition(".")[2] in lora.targets
    )
    assert shape.lora_parameters(lora.rank, lora.targets) == trainable


def test_a_large_vocabulary_is_planned_for(tmp_path: Path) -> None:
    """Its output rows alone take what a smaller one leaves free."""
    plans = {}
    for name in ("llama-2-7b", "llama-3-8b"):
        changes = {"imports.text_model": str(folder_of(name, tmp_path))}
        plans[name] = plan(load_recipe("release", changes), 8, 80)
    small, large = (found["stages"][0] for found in plans.values())
    assert large.memory.weights > small.memory.weights
    assert large.tokens_at_once < small.tokens_at_once or large.memory.total > small.memory.total
    assert all(stage.memory.total < 80e9 for stage in plans["llama-3-8b"]["stages"])
    assert "129266 tokens" in render(plans["llama-3-8b"])
    assert str(tmp_path / "llama-3-8b") in render(plans["llama-3-8b"])
    # Planned before it is fetched: the recipe says how many tokens there are.
    before = plan(load_recipe("release", {"language_model.vocabulary": 128256}), 8, 80)
    assert before["vocabulary"] == 128256 + 1000 + 6
    assert before["stages"][0].memory.total > small.memory.total


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="type gpt2, expected llama"):
        plan(load_recipe("release", {"imports.text_model": str(tmp_path)}), 8, 80)


def test_published_sizes() -> None:
    release, paper = (load_recipe(name) for name in ("release", "paper"))
    assert Shape.of(release).parameters == pytest.approx(6.746e9, rel=1e-3)
    assert Shape.of(paper).parameters == pytest.approx(13.03e9, rel=2e-3)
    assert Shape.of(release).vocabulary == 33_006
    assert Shape.of(release).lora_parameters(8, ("q_proj", "v_proj")) == 4_194_304


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1 << 25, 1 << 20])  # logits of all positions, and of 256
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(
    precision: str, checkpointing: bool, at_once: int, monkeypatch
) -> None:
    monkeypatch.setattr(planning, "LOGITS_AT_ONCE", at_once)
    shape = Shape(3000, 256, 6, 8, 688)
    model, ids = small_model(shape, checkpointing), torch.randint(3, 3000, (4, 512))
    score = CausalLoss(model)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return score(ids, torch.ones(4, 512))[0]

    kept = kept_by_autograd(run, model.parameters())
    copies = 0  # autocast's bf16 copies of the weights, which the plan counts among the weights
    if precision == "bf16":
        layers = 0 if checkpointing else shape.layers
        copies = 2 * shape.vocabulary * shape.hidden_size + 2 * layers * shape.layer_parameters
    if precision == "bf16" and at_once == 1 << 20:  # each part copies the table, and drops it
        copies -= 2 * shape.vocabulary * shape.hidden_size
    planned = activation_bytes(shape, 2048, precision, checkpointing)
    assert planned == pytest.approx(kept - copies, rel=0.05)


@pytest.mark.parametrize("base", ["fp32", "bf16"])
@pytest.mark.parametrize("targets", ["q_proj v_proj", "o_proj down_proj", " ".join(EVERY)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_keep_what_is_planned(base: str, targets: str, checkpointing: bool) -> None:
    """Without dropout, whose mask a CPU keeps in four bytes instead of one."""
    shape = Shape(3000, 256, 6, 8, 688)
    model, ids = small_model(shape, checkpointing), torch.randint(3, 3000, (4, 256))
    lora = LoraSettings(rank=16, dropout=0.0, base=base, targets=tuple(targets.split()))
    add_lora(model, lora, seed=0, new_tokens=range(2900, 3000))
    score = CausalLoss(model)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return score(ids, torch.ones(4, 256))[0]

    kept = kept_by_autograd(run, model.parameters())
    planned = activation_bytes(shape, 1024, "bf16", checkpointing, lora)
    assert planned == pytest.approx(kept, rel=0.15)


def test_the_plan_is_the_tensor_bytes_of_a_training() -> None:
    """Weights, gradients and moments to the byte; together with what autograd keeps within 15 %."""
    model, ids = small_model(SMALL), torch.randint(3, SMALL.vocabulary, (4, 256))
    score = CausalLoss(model)
    kept = kept_by_autograd(lambda: score(ids, torch.ones(4, 256))[0], model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    estimate = full_memory(SMALL, 1, 1024, "no", checkpointing=False)
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(p.grad.nbytes for p in model.parameters())
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    assert (estimate.weights, estimate.gradients) == (weights, gradients)
    assert estimate.optimizer == moments
    assert estimate.total == pytest.approx(weights + gradients + moments + kept, rel=0.15)


def test_lora_parameters_are_pefts() -> None:
    targets = ("q_proj", "v_proj", "down_proj")
    model = add_lora(small_model(SMALL), LoraSettings(rank=8, targets=targets), seed=0)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert SMALL.lora_parameters(8, targets) == trainable
    lora = LoraSettings(rank=8, targets=("q_proj",), base="bf16")
    assert lora_memory(SMALL, lora, 1024).weights < full_memory(SMALL, 1, 1024).weights
    with pytest.raises(UserError, match="LoRA on key"):
        SMALL.lora_parameters(8, ("key",))


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, ids = small_model(SMALL), torch.randint(3, 3000, (2, 256))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        CausalLoss(model)(ids, torch.ones(2, 256))[0].backward()
    # The counter sees whole squares of attention where ours counts the causal half.
    whole = SMALL.flops_per_token(256) + 6 * SMALL.layers * 256 * SMALL.hidden_size
    assert counter.get_total_flops() == pytest.approx(whole * 512, rel=0.05)


def test_a_plan_for_the_release() -> None:
    found = plan(load_recipe("release"), 8, 80)
    text = render(found)
    for stage in found["stages"]:
        assert stage.memory.total < 80e9 and stage.tokens_at_once % 1024 == 0
        assert stage.accumulation * stage.tokens_at_once >= stage.tokens
        assert stage.name in text
    stage1 = found["stages"][0]
    expected = 6 * 6.746e9 * 900 * 196_608 / (0.4 * 989e12) / 3600
    assert stage1.hours * 8 == pytest.approx(expected, rel=0.12)


def test_small_fits_as_it_stands_and_else_is_told_how() -> None:
    """A plan counts what the recipe keeps (no checkpointing) and says which accumulation fits."""
    found = plan(load_recipe("small"), 1, 24)
    assert found["changes"] == [] and "--set" not in render(found)
    whole = {f"stage{k}.optimization.accumulation": 1 for k in (1, 2, 3)}
    told = plan(load_recipe("small", whole), 1, 24)
    fitting = dict(change.split("=") for change in told["changes"])
    assert fitting == {
        f"stage{k}.optimization.accumulation": n for k, n in zip("123", "442", strict=True)
    }
    assert render(told).endswith("--set stage3.optimization.accumulation=2")
    again = plan(load_recipe("small", {key: int(n) for key, n in fitting.items()}), 1, 24)
    assert again["stages"] == told["stages"] == found["stages"]
    less = plan(load_recipe("small", whole | {"stage1.checkpointing": True}), 1, 24)
    assert less["stages"][0].accumulation == 1


def test_what_cannot_fit_is_refused_with_a_cure() -> None:
    message = "stage1 of release needs .* GB on each of 1 GPUs.*more GPUs"
    with pytest.raises(UserError, match=message):
        plan(load_recipe("release"), 1, 80)
    with pytest.raises(UserError, match="stage1 of paper"):
        plan(load_recipe("paper"), 2, 80)
    assert plan(load_recipe("paper"), 96, 80)["parameters"] > 13e9
