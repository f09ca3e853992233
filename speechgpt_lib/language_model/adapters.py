"""LoRA adapters (Hu et al. 2021): put into a model, saved with its id, attached and merged again.

The release wrapped its model before it added the new tokens, so its adapters were saved without
their embeddings and answered in noise when they were loaded.  Here the vocabulary is expanded
before; what an adapter trains of the embeddings it carries; and it refuses any base but its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import LlamaForCausalLM

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.tensors import check_finite, check_sizes
from speechgpt_lib.recipes.schema import LoraSettings
from speechgpt_lib.runs.artefacts import read_json, write_json

if TYPE_CHECKING:  # it takes 140 MB: imported where it is used
    from peft import PeftModel

CONFIG = "adapter_config.json"
SAMPLED = 4096  # numbers of each tensor that go into a model's id


def model_id(model: LlamaForCausalLM) -> str:
    """16 hex digits: a hash of every tensor's name, shape, first and last numbers (7B: seconds)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]]).float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


def store_as(model: LlamaForCausalLM, base: str) -> None:
    """Store the weights of `model`, in place, in fp32, bf16, int8 or 4bit; adapters stay fp32.

    The release trained its last stage on int8.  int8 and 4bit are bitsandbytes' (Dettmers et al.
    2022, arXiv 2208.07339; 2023, arXiv 2305.14314: NF4), with embeddings, norms and the output
    layer in bf16; without bitsandbytes they raise UserError.
    """
    if base != "fp32":
        model.to(torch.bfloat16)
    if base in ("fp32", "bf16"):
        return
    try:
        from bitsandbytes import nn as coarse
    except ImportError:
        raise UserError(
            f"a base of {base} needs bitsandbytes, which is not installed: "
            'pip install "speechgpt_lib[quantized]", or set lora.base: bf16'
        ) from None
    for layer in model.model.layers:
        for name, linear in [(n, m) for n, m in layer.named_modules() if isinstance(m, nn.Linear)]:
            shape = (linear.in_features, linear.out_features, linear.bias is not None)
            weight = linear.weight.data
            if base == "int8":
                new = coarse.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0)
                new.weight = coarse.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            else:
                new = coarse.Linear4bit(*shape, compute_dtype=torch.bfloat16, quant_type="nf4")
                new.weight = coarse.Params4bit(weight, requires_grad=False, quant_type="nf4")
            new.bias = linear.bias
            layer.set_submodule(name, new.to(weight.device))  # moving it is what quantizes


def add_lora(
    model: LlamaForCausalLM, settings: LoraSettings, seed: int, new_tokens: Sequence[int] = ()
) -> PeftModel:
    """Freeze `model`, store it as `settings.base` says, and put low-rank adapters into it in place.

    After the vocabulary was expanded, never before.  The rows of the ids `new_tokens` learn too, in
    the embeddings and, where it has weights of its own, in the output layer, and are saved with the
    adapter.  Raises UserError for a target that is no layer of the model, and for int8 or 4bit
    without bitsandbytes.
    """
    from peft import LoraConfig, get_peft_model

    identity, ids = model_id(model), list(new_tokens)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and (named := sorted({"embed_tokens", "lm_head"} & set(settings.targets))):
        shared = "input and output of this model share one table: set lora.new_tokens instead"
        raise UserError(f"stage3.lora.targets has {named[0]}, but {shared}")
    tables = {"embed_tokens"} if tied else {"embed_tokens", "lm_head"} - set(settings.targets)
    store_as(model, settings.base)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        trainable_token_indices=dict.fromkeys(sorted(tables), ids) if ids and tables else None,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"stage3.lora.targets {settings.targets} are not layers of this model: {error}"
        ) from None
    adapted.active_peft_config.base_model_name_or_path = identity  # by it nothing is ever fetched
    return adapted


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Adapters, and the embeddings they trained, into `folder`; of the base only its id."""
    # Without the argument peft looks the base up to compare vocabularies.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    config = read_json(folder / CONFIG)
    # peft keeps sets, whose order changes from process to process.
    config |= {k: sorted(v) for k, v in config.items() if k == "target_modules" and v}
    write_json(folder / CONFIG, config)


def attach_adapter(model: LlamaForCausalLM, folder: Path, trust: bool = False) -> PeftModel:
    """A saved adapter on the model it was trained on, not merged: bit for bit as in memory.

    `trust`: whatever model it says it belongs to.  Raises UserError where there is no adapter, or
    one that is damaged or of another base.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"no adapter in {folder}: run notebook 08_stage3_chain_of_modality_lora")
    base, found = read_json(folder / CONFIG).get("base_model_name_or_path"), model_id(model)
    if base not in (None, "", found) and not trust:
        raise UserError(
            f"{folder} belongs to the base model {base}, this is {found}: load its run's stage 2"
        )
    with reading(f"adapter {folder}", "take that of this model", "does not fit this model"):
        from peft import PeftModel

        check_sizes(read_json(folder / CONFIG), folder / CONFIG)
        return PeftModel.from_pretrained(model, str(folder), local_files_only=True).eval()


def adopt_adapter(model: LlamaForCausalLM, folder: Path, out: Path) -> int:
    """Make an adapter that others trained on `model` one of ours, in `out`; how many parameters?

    Nothing in it says which model it is of: only shapes are checked.  Raises as `attach_adapter`.
    """
    identity, adapted = model_id(model), attach_adapter(model, folder, trust=True)
    check_finite(adapted.state_dict(), folder)
    adapted.active_peft_config.base_model_name_or_path = identity
    save_adapter(adapted, out)
    return sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)


def load_adapter(model: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """The model with a saved adapter merged into its weights.  Raises as `attach_adapter`."""
    return attach_adapter(model, folder).merge_and_unload().eval()
