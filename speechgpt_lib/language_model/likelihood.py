"""How likely a model finds a sequence: the sum of the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers

from speechgpt_lib.language_model.vocabulary import PAD, UnitVocabulary
from speechgpt_lib.training.batches import fill_batches

# Held at once, in float32, and as much again or twice for their logarithms: 16 MB on a CPU, to
# which more at a time is worth nothing, and 128 MB on a GPU.
MOST_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 25}


@torch.inference_mode()
def log_likelihoods(
    model: transformers.PreTrainedModel, rows: Sequence[Sequence[int]], given: int = 1
) -> list[float]:
    """log p(ids[given:] | ids[:given]) of each row of ids, in nats, in the order of `rows`.

    Rows of like length go together, padded on the right, where no token looks.
    """
    model.eval()
    sums = [0.0] * len(rows)
    lengths = [len(row) for row in rows]
    most = MOST_LOGITS.get(model.device.type, MOST_LOGITS["cpu"])
    budget = max(1, most // model.config.vocab_size)  # tokens of a batch with its padding
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    for batch in fill_batches(by_length, lengths, budget):
        longest = max(lengths[k] for k in batch)
        ids = torch.full((len(batch), longest), PAD, device=model.device)
        for row, k in zip(ids, batch, strict=True):
            row[: lengths[k]] = torch.tensor(rows[k])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        chosen = logits.gather(2, ids[:, 1:, None])[..., 0]  # (batch, tokens − 1)
        logs = chosen - logits.logsumexp(2)
        for row, k in zip(logs.double().cpu(), batch, strict=True):
            sums[k] = row[given - 1 : lengths[k] - 1].sum().item()
    return sums


def unit_log_likelihoods(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    units: Sequence[np.ndarray],
    per_token: bool = True,
) -> list[float]:
    """log p of unit sequences (n,) and their end, in nats: in the mean of their n + 1 tokens, so
    that a longer one isn't less likely for its length, or the sum."""
    rows = [[vocabulary.begin, *vocabulary.encode_units(u)] for u in units]  # as stage 1 has them
    sums = log_likelihoods(model, rows, given=2)  # the begin and <sosp> are in every row
    tokens = [len(row) - 2 if per_token else 1 for row in rows]
    return [total / count for total, count in zip(sums, tokens, strict=True)]
