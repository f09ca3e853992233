"""LoRA adapters (Hu et al. 2021): put into a model, saved with its id, attached and merged again.

The release wrapped its model before it added the new tokens, so its adapters were saved without
their embeddings and answered in noise when they were loaded.  Here the vocabulary is expanded
before; what an adapter trains of the embeddings it carries; and it refuses any base but its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.tensors import check_sizes, check_tensors
from speechgpt_lib.language_model.families import read_config
from speechgpt_lib.language_model.weights import EMBEDDINGS, HEAD, empty_model, read_weights
from speechgpt_lib.recipes.schema import LoraSettings
from speechgpt_lib.runs.artefacts import read_json, write_json

if TYPE_CHECKING:  # it takes 140 MB: imported where it is used
    from peft import PeftModel

CONFIG = "adapter_config.json"
SAMPLED = 4096  # numbers of each tensor that go into a model's id


def model_id(model: transformers.PreTrainedModel) -> str:
    """16 hex digits: a hash of every tensor's name, shape, first and last numbers (7B: seconds)."""
    return _id_of((name, *_shape_and_ends(t)) for name, t in model.state_dict().items())


def folder_id(folder: Path) -> str:
    """`model_id` of the model in a folder, in the precision of its files; it is not loaded."""
    model = empty_model(read_config(folder))
    found = {name: _shape_and_ends(t) for name, t in read_weights(folder, model, False)}
    if model.config.tie_word_embeddings:
        found[HEAD] = found[EMBEDDINGS]
    return _id_of((name, *parts) for name, parts in found.items())


def _shape_and_ends(tensor: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    flat = tensor.detach().flatten()
    ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]]).float().cpu()
    return tuple(tensor.shape), ends.numpy().tobytes()


def _id_of(tensors: Iterable[tuple[str, tuple[int, ...], bytes]]) -> str:
    digest = hashlib.sha256()
    for name, shape, ends in sorted(tensors):
        digest.update(f"{name} {shape} ".encode() + ends)
    return digest.hexdigest()[:16]


def store_as(
    model: transformers.PreTrainedModel, base: str, device: torch.device | str | None = None
) -> None:
    """Store the weights of `model`, in place, in fp32, bf16, int8 or 4bit; adapters stay fp32.
    With a `device` they come there, a layer at a time.

    The release trained its last stage on int8.  int8 and 4bit are bitsandbytes' (Dettmers et al.
    2022, arXiv 2208.07339; 2023, arXiv 2305.14314: NF4), with embeddings, norms and the output
    layer in bf16; without bitsandbytes they raise UserError.
    """
    if base != "fp32":
        model.to(torch.bfloat16)
    if base in ("fp32", "bf16"):
        return None if device is None else model.to(device)
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
            layer.set_submodule(name, new.to(device or weight.device))  # moving it quantizes
    if device is not None:  # what is left: embeddings, norms, the output layer
        model.to(device)


def add_lora(
    model: transformers.PreTrainedModel,
    settings: LoraSettings,
    seed: int,
    new_tokens: Sequence[int] = (),
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
    _sort_targets(folder)


def _sort_targets(folder: Path) -> None:
    """peft keeps sets, whose order changes from process to process."""
    config = read_json(folder / CONFIG)
    config |= {k: sorted(v) for k, v in config.items() if k == "target_modules" and v}
    write_json(folder / CONFIG, config)


def attach_adapter(
    model: transformers.PreTrainedModel,
    folder: Path,
    trust: bool = False,
    identity: str | None = None,
) -> PeftModel:
    """A saved adapter on the model it was trained on, not merged: bit for bit as in memory.

    `trust`: whatever model it says it belongs to.  `identity`: the model's id, where it is not what
    its weights say, since they were rounded.  Raises UserError where there is no adapter, or one
    that is damaged or of another base.
    """
    _check_is_adapter(folder)
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    found = None if trust else identity or model_id(model)
    if base not in (None, "", found) and not trust:
        raise UserError(
            f"{folder} belongs to the base model {base}, this is {found}: load its run's stage 2"
        )
    with reading(f"adapter {folder}", "take that of this model", "does not fit this model"):
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(folder), local_files_only=True).eval()


def _check_is_adapter(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise UserError(f"no adapter in {folder}: run notebook 08_stage3_chain_of_modality_lora")
    check_sizes(read_json(folder / CONFIG), folder / CONFIG)


def adopt_adapter(base: Path, folder: Path, out: Path) -> int:
    """Make an adapter that others trained on the model in `base` one of ours, in `out`; how many
    parameters?

    Nothing in it says which model it is of: names and shapes are compared, and the model is not
    loaded for that.  Raises as `attach_adapter`.
    """
    _check_is_adapter(folder)
    with reading(f"adapter {folder}", "take that of this model", "does not fit this model"):
        from peft import PeftConfig, get_peft_model
        from peft.utils import get_peft_model_state_dict, load_peft_weights

        config = PeftConfig.from_pretrained(str(folder))
        config.base_model_name_or_path = None
        adapted = get_peft_model(empty_model(read_config(base)), config)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        found = load_peft_weights(str(folder), device="cpu")
        check_tensors(found, expected, folder)
    config.base_model_name_or_path = folder_id(base)
    config.save_pretrained(str(out))
    save_file(found, out / "adapter_model.safetensors", {"format": "pt"})
    _sort_targets(out)
    return sum(tensor.numel() for name, tensor in found.items() if "lora_" in name)


def load_adapter(model: transformers.PreTrainedModel, folder: Path) -> transformers.PreTrainedModel:
    """The model with a saved adapter merged into its weights.  Raises as `attach_adapter`."""
    return attach_adapter(model, folder).merge_and_unload().eval()
