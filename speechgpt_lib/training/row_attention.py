"""Attention of packed rows, each by itself: what a row does not see is never computed.

A mask over a whole block computes all and throws most of it away: of a block of 1024 tokens that holds five rows, four fifths.  On GPUs
flash attention (varlen) and flex attention avoid that; here it is written for the CPU, in matrix products of the rows' own lengths.  It is
registered with transformers under `NAME`, and finds where rows begin by their positions.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import repeat_kv

NAME = "packed_rows"


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
    begins.  Returns (blocks, tokens, heads, width).
    """
    key, value = (repeat_kv(states, module.num_key_value_groups) for states in (key, value))
    tokens = query.shape[2]
    begins = (position_ids == 0).expand(len(query), tokens).nonzero().tolist()
    spans = [(b, start, end if b == after else tokens) for (b, start), (after, end) in zip(begins, [*begins[1:], (-1, 0)], strict=True)]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)  # from each token: those after it
    results = []
    for block, start, end in spans:
        q, k, v = (states[block, :, start:end] for states in (query, key, value))
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(hidden[: end - start, : end - start], -torch.inf)
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        results.append((nn.functional.dropout(weights, dropout, module.training) @ v).transpose(0, 1))
    return torch.cat(results).view(len(query), tokens, *results[0].shape[1:]), None


AttentionInterface.register(NAME, row_attention)
