"""The families of language models that a run may build on, as transformers knows them.

All are decoders of LLaMA's kind: the same names of layers, rotary positions, a gated feed-forward
layer.  SmolLM, Llama 1 to 3 and many others are `llama`.
"""

from __future__ import annotations

from pathlib import Path

import transformers

from speechgpt_lib.errors import UserError, reads
from speechgpt_lib.foreign.tensors import check_sizes
from speechgpt_lib.runs.artefacts import read_json

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # by transformers' names


def config_class(family: str) -> type[transformers.PretrainedConfig]:
    """The configuration of a family."""
    return transformers.CONFIG_MAPPING[family]


def model_class(config: transformers.PretrainedConfig) -> type[transformers.PreTrainedModel]:
    """The model that a configuration describes."""
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@reads("has a damaged config.json")
def read_config(folder: Path) -> transformers.PretrainedConfig:
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
    return config_class(kind).from_pretrained(folder, **options)
