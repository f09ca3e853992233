"""Attention of packed rows, each by itself: what a row does not see is never computed.

A mask over a whole block computes all and throws most of it away: of a block of 1024 tokens that
holds five rows, four fifths.  On GPUs flash attention (varlen) and flex attention avoid that; here
it is written for the CPU.  Rows of like length are laid beside each other, padded to the next
multiple of `STEP` tokens, and multiplied at once: linear layers see no padding, attention little,
and matrices come in few shapes (a CPU prepares a kernel for every new one).  It is registered with
transformers under `NAME`, and finds where rows begin by their positions.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import repeat_kv

NAME = "packed_rows"
STEP = 32  # tokens


def row_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_ids: torch.Tensor | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """Causal attention within every row of every block, as transformers asks for it.

    query (blocks, heads, tokens, width), key and value the same with perhaps fewer heads;
    position_ids (blocks, tokens) are 0 where a row begins, so at the beginning of every block.
    Returns (blocks, tokens, heads, width).
    """
    blocks, heads, tokens, width = query.shape
    groups, place, slot, real = _lay_out(position_ids.expand(blocks, tokens))
    sizes = [rows * length for rows, length in groups]
    laid = []
    for states in (query, key, value):
        flat = states.transpose(1, 2).flatten(0, 1)  # (blocks · tokens, heads, width)
        laid.append(_Gather.apply(flat, place, slot, None).split(sizes))
    seen = []
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


Layout = tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor, torch.Tensor]


def _lay_out(positions: torch.Tensor) -> Layout:
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


AttentionInterface.register(NAME, row_attention)
