"""Token rows and the batches made of them: rows of like length together, under a budget of tokens, in a reproducible order."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import Row
from speechgpt_lib.language_model.llama_vocabulary import LlamaVocabulary
from speechgpt_lib.language_model.vocabulary import PAD, Vocabulary
from speechgpt_lib.training.buckets import shuffled_buckets
from speechgpt_lib.training.epochs import Epochs


@dataclass(frozen=True)
class TokenRow:
    """Ids of one row and, for each, how much its prediction counts (0 = not at all); `name` tells people where it comes from."""

    ids: list[int] | np.ndarray
    weights: list[float] | np.ndarray
    name: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.ids)


def row_to_tokens(
    row: Row,
    vocabulary: Vocabulary | LlamaVocabulary,
    loss: str = "answer",
    text_weight: float = 1.0,
) -> TokenRow:
    """Encode a row; `loss` is "answer" (the prompt is not learned) or "all" (of the prompt only the meta prefix is not, as in the release).

    `text_weight` is what a text token counts beside a unit: a transcript has a tenth of the tokens of the speech it belongs to, and
    counted alike, listening would be learned ten times slower than speaking.
    """
    prompt, answer = vocabulary.encode_row(row)
    unlearned = len(vocabulary.encode_prefix()) if loss == "all" else len(prompt)
    counts = [0.0] * unlearned + [1.0] * (len(prompt) - unlearned + len(answer))
    ids = prompt + answer
    return TokenRow(
        ids,
        [w if vocabulary.is_unit(i) else w * text_weight for i, w in zip(ids, counts, strict=True)],
        row.name,
    )


def padded_length(tokens: int) -> int:
    """`tokens` rounded up to a multiple of 16: few different shapes, for each of which the CPU's kernels are prepared anew."""
    return -(-tokens // 16) * 16


def collate(rows: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows → ids and weights (rows, longest rounded up), padded on the right."""
    longest = padded_length(max(len(row) for row in rows))
    ids = torch.full((len(rows), longest), PAD, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row.ids)
        weights[k, : len(row)] = torch.tensor(row.weights)
    return ids, weights


class EpochBatches:
    """Batches by step number, bucketed by length and shuffled.

    `rows_of(epoch, step)` gives the rows of the epoch that begins at `step`.
    A batch depends on the step alone, so training resumes anywhere; every process of several takes its share of each batch.
    """

    def __init__(
        self,
        rows_of: Callable[[int, int], list[TokenRow]],
        tokens_per_batch: int,
        seed: int,
        limit: int = 1024,
    ):
        self.rows_of, self.tokens_per_batch, self.seed, self.limit = (
            rows_of,
            tokens_per_batch,
            seed,
            limit,
        )
        self.epochs = Epochs(self._plan)

    def __call__(
        self, step: int, rank: int = 0, world_size: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return collate(self.rows_at(step, rank, world_size))

    def rows_at(self, step: int, rank: int, world_size: int) -> list[TokenRow]:
        """The rows of that batch; where there are fewer than processes, one that counts nothing."""
        batch = self.epochs.at(step)
        return batch[rank::world_size] or [TokenRow(batch[0].ids, [0.0] * len(batch[0]))]

    def _plan(self, epoch: int, first: int) -> list[list[TokenRow]]:
        rows = self.rows_of(epoch, first)
        if not rows:
            raise UserError(
                "there are no rows to train on: the data step before this one made none"
            )
        too_long = max(len(row) for row in rows)
        if too_long > self.limit:
            raise UserError(
                f"a row has {too_long} tokens, the model reads {self.limit}: shorten the data or drop long rows when building it"
            )
        lengths, rng = [len(row) for row in rows], random.Random(f"{self.seed} {epoch}")
        padded = [padded_length(length) for length in lengths]
        batches = shuffled_buckets(lengths, self.tokens_per_batch, rng, padded)
        return [[rows[k] for k in batch] for batch in batches]
