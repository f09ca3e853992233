"""The families of language models that a run may build on, as transformers knows them.

All are decoders of LLaMA's kind: the same names of layers, rotary positions, a gated feed-forward
layer.  SmolLM, Llama 1 to 3 and many others are `llama`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from speechgpt_lib.errors import UserError, reads
from speechgpt_lib.foreign.tensors import check_sizes
from speechgpt_lib.runs.artefacts import read_json


class Family(NamedTuple):
    """A configuration and the model that it describes."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]


FAMILIES = {
    "llama": Family(LlamaConfig, LlamaForCausalLM),
    "mistral": Family(MistralConfig, MistralForCausalLM),
    "qwen2": Family(Qwen2Config, Qwen2ForCausalLM),
    "qwen3": Family(Qwen3Config, Qwen3ForCausalLM),
}


@reads("has a damaged config.json")
def read_config(folder: Path) -> PretrainedConfig:
    """`config.json` of a model.  Raises UserError where it is missing, damaged or of a model of no
    family of ours."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {folder}: expected a folder as transformers saves it")
    settings = read_json(path, "get it again")
    check_sizes(settings, path)
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        first, *others = FAMILIES
        expected = f"expected {first} or another of its kind ({', '.join(others)})"
        raise UserError(f"{folder} has a model of type {kind}, {expected}")
    options = {"local_files_only": True, "attn_implementation": "sdpa"}
    return FAMILIES[kind].config.from_pretrained(folder, **options)
