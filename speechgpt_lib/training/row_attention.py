"""Attention of packed rows, each by itself: what a row does not see is never computed.

A mask over a whole block computes all and throws most of it away: of a block of 1024 tokens that holds five rows, four fifths.  On GPUs
flash attention (varlen) and flex attention avoid that; here it is written for the CPU.  Rows of like length are laid beside each other,
filled up to the next multiple of `STEP` tokens, and multiplied at once: linear layers see no padding, attention little, and matrices come
in few shapes (a CPU prepares a kernel for every new one).  It is registered with transformers under `NAME`, and finds where rows begin
by their positions.
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

    query (blocks, heads, tokens, width), key and value the same with perhaps fewer heads; position_ids (blocks, tokens) are 0 where a row
    begins, so at the beginning of every block.  Returns (blocks, tokens, heads, width).
    """
    blocks, heads, tokens, width = query.shape
    groups, place, slot, real = _lay_out(position_ids.expand(blocks, tokens))
    laid = [
        _Gather.apply(states.transpose(1, 2).flatten(0, 1), place, slot, None)
        for states in (query, key, value)
    ]
    seen = []
    for parts in zip(
        *(states.split([rows * length for rows, length in groups]) for states in laid),
        groups,
        strict=True,
    ):
        *parts, (rows, length) = parts
        q, k, v = (
            states.unflatten(0, (rows, length)).transpose(1, 2) for states in parts
        )  # (rows, heads, length, width)
        k, v = (repeat_kv(states, module.num_key_value_groups) for states in (k, v))
        later = query.new_full((length, length), -torch.inf).triu(1)
        scores = ((q * scaling) @ k.transpose(2, 3)).add_(
            later
        )  # in place: the product keeps nothing of it, and the mask has no gradient
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        seen.append(
            (nn.functional.dropout(weights, dropout, module.training) @ v)
            .transpose(1, 2)
            .flatten(0, 1)
        )
    return _Gather.apply(torch.cat(seen), slot, place, real).view(
        blocks, tokens, heads, width
    ), None


def _lay_out(
    positions: torch.Tensor,
) -> tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots for all rows, those of like length beside each other: groups (rows, length), the token of every slot, the slot of every token,
    and which slots are no filling.

    A row is filled up with what stands after it, or with the very last token: its own tokens do not look so far ahead.
    """
    begins = (positions.flatten() == 0).nonzero()[:, 0]
    lengths = torch.diff(begins, append=begins.new_tensor([positions.numel()]))
    filled = -(-lengths // STEP) * STEP
    groups, places, reals = [], [], []
    for length in filled.unique().tolist():
        own, steps = filled == length, torch.arange(length, device=positions.device)
        places.append((begins[own, None] + steps).flatten())
        reals.append((steps < lengths[own, None]).flatten())
        groups.append((len(places[-1]) // length, length))
    place, real = torch.cat(places), torch.cat(reals)
    slot = torch.empty(positions.numel(), dtype=torch.long, device=positions.device)
    slot[place[real]] = real.nonzero()[:, 0]
    return groups, place.clamp(max=positions.numel() - 1), slot, real


class _Gather(torch.autograd.Function):
    """x[index], whose gradient is gathered, too, by the index that leads back; what is `real` alone has one."""

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor, real: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.back, ctx.real = back, real
        return x[index]

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gathered = gradient[ctx.back]
        return (
            gathered if ctx.real is None else gathered * ctx.real[:, None, None],
            None,
            None,
            None,
        )


AttentionInterface.register(NAME, row_attention)
