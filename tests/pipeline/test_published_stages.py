"""The three stages on a published LLaMA, as `release` has them: its vocabulary, packing, masks, and
a frozen base in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.llama_reference import train_tokenizer
from speechgpt_lib.language_model.adapters import attach_adapter
from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.language_model.vocabulary import ADDED_MARKERS, LlamaVocabulary
from speechgpt_lib.pipeline.graph import make, order
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import Imports
from speechgpt_lib.runs.run import Run
from tests.builders import change_of_old_logits
from tests.language_model.test_pretrained import SHAPE, published

PIECES = 1500


def release_like(folder: Path) -> Recipe:
    """`release` in the sizes of the smoke run: what makes it the release stays, batches and steps
    shrink."""
    smoke, release = load_recipe("smoke"), load_recipe("release")
    language_model = release.language_model.model_copy(update=SHAPE | {"vocabulary": PIECES})
    changes: dict = {
        "imports": Imports(text_model=str(folder)),
        "language_model": language_model,
        "instructions": release.instructions.model_copy(update={"written_dialogues": 6}),
    }
    for name in ("stage1", "stage2", "stage3"):
        stage = getattr(release, name)
        optimization = stage.optimization.model_copy(
            update={"steps": 3, "log_every": 1, "warmup": 1, "learning_rate": 1e-3}
        )
        changes[name] = stage.model_copy(
            update={"tokens_per_batch": 2048, "block": 1024, "optimization": optimization}
        )
    lora = release.stage3.lora.model_copy(update={"base": "bf16", "new_tokens": True})
    changes["stage3"] = changes["stage3"].model_copy(update={"lora": lora})
    return smoke.model_copy(update=changes)


@pytest.mark.slow
def test_from_a_folder_to_an_adapter(smoke_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llama-tiny"
    published(folder, PIECES)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(PIECES, 2000))
    smoke = Run.open(smoke_run, say=lambda line: None)
    steps = ("corpus", "hubert", "inventory", "units", "text_to_unit")
    run = smoke.fork(tmp_path / "run", release_like(folder), {name: name for name in steps})
    assert "text_model" in order(run.recipe), "the expanded model needs it, imported or not"
    text_model = make(run, "text_model")
    assert text_model.metrics["vocabulary"] == PIECES and "loss" not in text_model.metrics
    expanded = make(run, "expanded_model")
    model, vocabulary = load_model(expanded.path)
    assert isinstance(vocabulary, LlamaVocabulary)
    assert [vocabulary.marker(name) for name in ADDED_MARKERS] == list(
        range(PIECES + 20, PIECES + 26)
    )
    assert model.config.vocab_size == vocabulary.size == PIECES + 26, "never padded"
    assert change_of_old_logits(run) < 1e-5
    make(run, "cross_modal_set")
    make(run, "chain_set")
    stage1, stage2, stage3 = (make(run, name) for name in ("stage1", "stage2", "stage3"))
    for stage in (stage1, stage2, stage3):
        assert stage.metrics["steps"] == 3 and stage.metrics["tokens"] > 0
    saved = load_file(stage3.path / "adapter_model.safetensors")
    assert any("token_adapter" in name or "embed" in name for name in saved), (
        "new tokens were trained, so they are saved"
    )
    attach_adapter(load_model(stage2.path)[0], stage3.path)
    assert make(run, "text_model").reused
    (folder / "generation_config.json").write_text('{"temperature": 0.3}')
    assert not make(run, "text_model").reused, "another model in its place is noticed"
