"""A frozen model in fewer bytes, for adapters to learn on: bf16, int8 or 4 bit a weight, not 32.

Only what is frozen may be stored so coarsely: an adapter's own weights stay fp32.  The release
trained its last stage on an int8 base.  int8 and 4 bit are bitsandbytes' (Dettmers et al. 2022,
arXiv 2208.07339; 2023, arXiv 2305.14314: NF4); embeddings, norms and the output layer are bf16.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from transformers import LlamaForCausalLM

from speechgpt_lib.errors import UserError

Base = Literal["fp32", "bf16", "int8", "4bit"]
BYTES: dict[str, float] = {"fp32": 4, "bf16": 2, "int8": 1, "4bit": 0.5}  # a weight of a matrix


def store_as(model: LlamaForCausalLM, base: Base) -> LlamaForCausalLM:
    """Store the weights of `model` as `base` says, in place, before adapters are put on.

    Such a model can't be fine-tuned whole.  Raises UserError for int8 or 4 bit without
    bitsandbytes.
    """
    if base == "fp32":
        return model
    if base == "bf16":
        return model.to(torch.bfloat16)
    try:
        from bitsandbytes import nn as coarse
    except ImportError:
        raise UserError(
            f"a base of {base} needs bitsandbytes, which is not installed: "
            'pip install "speechgpt_lib[quantized]", or set lora.base: bf16'
        ) from None
    model.to(torch.bfloat16)
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
            parent, _, own = name.rpartition(".")
            # Moving it is what quantizes.
            layer.get_submodule(parent).add_module(own, new.to(weight.device))
    return model
