"""Which of transformers' attentions a model trains with: on a CPU the written-out one, elsewhere the fused one.

In bf16 on a CPU the backward pass of torch's fused attention takes as long as all the rest of a step; written out as matrix
products it takes a tenth of it (sequences of about 100 tokens, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def training_attention(model: PreTrainedModel, device: str) -> Iterator[None]:
    """Within the block `model` computes attention in the way that trains fastest on `device`; after it, fused again."""
    model.set_attn_implementation("eager" if device == "cpu" else "sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
