"""How a model computes attention while it trains: the same function, as is fastest on a device.

In bf16 on a CPU the backward pass of torch's fused attention takes nearly as long as all the rest
of a step.  Written out as matrix products, a step of the lab's language model makes 14,700 tokens a
second instead of 9,200 (one thread, rows of 128, torch 2.13).  Packed rows are computed each by
itself (`row_attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from transformers import PreTrainedModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.training.row_attention import NAME


@contextmanager
def training_attention(
    model: PreTrainedModel, device: str, wanted: str = "auto", packed: bool = False
) -> Iterator[None]:
    """Within the block `model` computes attention as `wanted`; after it, fused again.

    "auto" is what trains fastest on `device`, else a name that transformers knows.  With `packed`,
    several rows share a block: "flex_attention" and "flash_attention_2", which want a GPU, skip
    what rows don't see of each other; "sdpa" and "eager" compute it and mask it.
    """
    if wanted == "auto" and device == "cpu":
        wanted = NAME if packed else "eager"
    elif wanted == "auto":
        flash = packed and device == "cuda" and find_spec("flash_attn")
        wanted = "flash_attention_2" if flash else "sdpa"
    try:
        model.set_attn_implementation(wanted)
    except (ImportError, ValueError) as error:
        why = str(error).splitlines()[0][:150]
        raise UserError(
            f"attention: {wanted} can't be had here ({why}): install it or set attention: auto"
        ) from None
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
