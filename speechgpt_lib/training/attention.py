"""How a model computes attention while it trains: the same function, as is fastest on a device.

In bf16 on a CPU the backward pass of torch's fused attention takes nearly as long as all the rest
of a step.  Written out as matrix products, a step of the lab's language model makes 14,700 tokens a
second instead of 9,200 (one thread, rows of 128, torch 2.13).
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec

import torch
import transformers
from torch import nn

from speechgpt_lib.errors import UserError

NAME = "packed_rows"  # under which transformers knows `row_attention`
STEP = 32  # tokens


@contextmanager
def training_attention(
    model: transformers.PreTrainedModel, device: str, wanted="auto", packed=False
):
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
        set_attention(model, wanted)
    except (ImportError, ValueError) as error:
        what = f"{wanted} can't be had here ({str(error).splitlines()[0][:150]})"
        raise UserError(f"attention: {what}: install it or set attention: auto") from None
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def set_attention(model: transformers.PreTrainedModel, name: str) -> None:
    """Let `model` compute attention as `name` says, of those that transformers knows or ours."""
    transformers.AttentionInterface.register(NAME, row_attention)
    model.set_attn_implementation(name)


def row_attention(
    module, query, key, value, mask, scaling: float, dropout=0.0, position_ids=None, **others
) -> tuple[torch.Tensor, None]:
    """Causal attention within every row of every block, as transformers asks for it.

    A mask over a block computes all and throws most away: four fifths where it holds five rows.  On
    GPUs flash and flex attention avoid that; this is for CPUs.  Rows of like length are padded to
    the next multiple of `STEP` and multiplied at once: linear layers see no padding, attention
    little, and matrices come in few shapes (a CPU prepares a kernel for every new one).

    query (blocks, heads, tokens, width), key and value the same with perhaps fewer heads;
    position_ids (blocks, tokens) are 0 where a row begins, so at the beginning of every block.
    Returns (blocks, tokens, heads, width); `mask` is not looked at.
    """
    blocks, heads, tokens, width = query.shape
    from transformers.models.llama.modeling_llama import repeat_kv

    groups, place, slot, real = _lay_out(position_ids.expand(blocks, tokens))
    sizes, laid, seen = [rows * length for rows, length in groups], [], []
    for states in (query, key, value):
        flat = states.transpose(1, 2).flatten(0, 1)  # (blocks · tokens, heads, width)
        laid.append(_Gather.apply(flat, place, slot, None).split(sizes))
    for group, *parts in zip(groups, *laid, strict=True):
        # (rows, heads, length, width)
        q, k, v = (part.unflatten(0, group).transpose(1, 2) for part in parts)
        k, v = (repeat_kv(states, module.num_key_value_groups) for states in (k, v))
        later = query.new_full((group[1], group[1]), -torch.inf).triu(1)
        # Added in place: the product keeps nothing of it, and the mask has no gradient.
        scores = ((q * scaling) @ k.transpose(2, 3)).add_(later)  # (rows, heads, length, length)
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        read = nn.functional.dropout(weights, dropout, module.training) @ v
        seen.append(read.transpose(1, 2).flatten(0, 1))
    whole = _Gather.apply(torch.cat(seen), slot, place, real)
    return whole.view(blocks, tokens, heads, width), None


def _lay_out(positions: torch.Tensor) -> tuple[list, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots for all rows, those of like length beside each other.

    Returns groups (rows, length), the token of every slot, the slot of every token, and which slots
    are no padding.  A row is padded with what stands after it, or with the very last token: its own
    tokens do not look so far ahead.
    """
    begins = (positions.flatten() == 0).nonzero()[:, 0]
    lengths = torch.diff(begins, append=begins.new_tensor([positions.numel()]))
    padded = -(-lengths // STEP) * STEP
    groups, places, reals = [], [], []
    for length in padded.unique().tolist():
        own, steps = padded == length, torch.arange(length, device=positions.device)
        places.append((begins[own, None] + steps).flatten())
        reals.append((steps < lengths[own, None]).flatten())
        groups.append((len(places[-1]) // length, length))
    place, real = torch.cat(places), torch.cat(reals)
    slot = torch.empty(positions.numel(), dtype=torch.long, device=positions.device)
    slot[place[real]] = real.nonzero()[:, 0]
    return groups, place.clamp(max=positions.numel() - 1), slot, real


class _Gather(torch.autograd.Function):
    """x[index]; the gradient is gathered by the index that leads `back`, for what is `real`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor, real):
        ctx.back, ctx.real = back, real
        return x[index]

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        gathered = gradient[ctx.back]
        if ctx.real is not None:
            gathered = gathered * ctx.real[:, None, None]
        return gathered, None, None, None
