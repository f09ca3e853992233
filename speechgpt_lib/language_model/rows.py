"""Token rows, in memory or on disk, and batches of rows of like length under a budget of tokens.

Sets that no memory holds are written row by row and read where needed: in memory a token takes some
40 bytes (100 GB for the released sets), on disk 3, and a row that nobody reads is a number.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.instructions.records import Record
from speechgpt_lib.instructions.sets import record_to_row
from speechgpt_lib.instructions.templates import Row
from speechgpt_lib.language_model.vocabulary import PAD, UnitVocabulary
from speechgpt_lib.recipes.schema import InstructionSettings
from speechgpt_lib.runs.artefacts import read_json
from speechgpt_lib.training.batches import Epochs, shuffled_buckets


@dataclass(frozen=True)
class TokenRow:
    """Ids of one row and the loss weight of each (the loss mask: 0 is not learned).

    `name` tells people where it comes from.
    """

    ids: list[int] | np.ndarray
    weights: list[float] | np.ndarray
    name: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.ids)


ROUND = 16  # lengths are rounded up to a multiple, since a CPU prepares kernels for every shape
RowsOf = Callable[[int, int], list[TokenRow]]  # (epoch, its first step) → the rows of that epoch


def row_to_tokens(
    row: Row, vocabulary: UnitVocabulary, loss: str = "answer", text_weight: float = 1.0
) -> TokenRow:
    """Encode a row with its loss mask.

    `loss` is "answer" (the prompt is not learned) or "all" (of the prompt only the meta prefix is
    not, as in the release).  `text_weight` is what a text token counts beside a unit: a transcript
    has a tenth of the tokens of the speech it belongs to, and counted alike, listening would be
    learned ten times slower than speaking.
    """
    prompt, answer = vocabulary.encode_row(row)
    ids = prompt + answer
    unlearned = len(vocabulary.encode_row(Row(()))[0]) if loss == "all" else len(prompt)
    learned = [1.0 if vocabulary.is_unit(i) else text_weight for i in ids[unlearned:]]
    return TokenRow(ids, [0.0] * unlearned + learned, row.name)


# --- on disk -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a `TokenTable`, read when it is asked for; to be used as a `TokenRow`."""

    table: TokenTable
    number: int

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        return self._tokens["id"].tolist()

    @property
    def weights(self) -> list[float]:
        """The loss weight of each token."""
        return self.table.weights[self._tokens["weight"]].tolist()

    @property
    def name(self) -> str:
        """Where the row comes from."""
        start, end = self.table.starts[self.number : self.number + 2, 1]
        return self.table.names[start:end].tobytes().decode()

    @property
    def _tokens(self) -> np.ndarray:
        start, end = self.table.starts[self.number : self.number + 2, 0]
        return self.table.tokens[start:end]


class TokenTable(Sequence):
    """Rows in a folder: tokens (an id and the number of its weight), and where rows begin."""

    def __init__(self, folder: Path):
        with reading(folder, "run its step again"):
            facts = read_json(folder / "facts.json")
            self.weights = np.array(facts["weights"], dtype=np.float64)
            self.tokens = _mapped(folder / "tokens", [("id", facts["id"]), ("weight", "uint8")])
            self.names = _mapped(folder / "names", "uint8")
            self.starts = _mapped(folder / "starts", "int64").reshape(-1, 2)  # of tokens and names

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> TableRow:
        return TableRow(self, range(len(self))[number])


def write_table(folder: Path, rows: Iterable[TokenRow], vocabulary_size: int) -> TokenTable:
    """Write `rows`, whose weights have at most 256 different values, into a new `folder`."""
    folder.mkdir(parents=True)
    kind = np.min_scalar_type(max(0, vocabulary_size - 1)).name
    codes: dict[float, int] = {}
    starts = array("q", [0, 0])
    with open(folder / "tokens", "wb") as tokens, open(folder / "names", "wb") as names:
        for row in rows:
            made = np.empty(len(row), [("id", kind), ("weight", "uint8")])
            made["id"] = row.ids
            made["weight"] = [codes.setdefault(w, len(codes)) for w in row.weights]
            tokens.write(made.tobytes())
            starts.append(starts[-2] + len(row))
            starts.append(starts[-2] + names.write(row.name.encode()))
    (folder / "starts").write_bytes(starts.tobytes())
    (folder / "facts.json").write_text(json.dumps({"id": kind, "weights": list(codes)}))
    return TokenTable(folder)


def encoded(
    records: Iterable[Record], vocabulary: UnitVocabulary, how: InstructionSettings, folder: Path
) -> TokenTable:
    """Records of a set as rows of tokens, written into `folder`."""
    rows = (record_to_row(record, how.templates) for record in records)
    tokens = (row_to_tokens(row, vocabulary, how.loss, how.text_weight) for row in rows)
    return write_table(folder, tokens, vocabulary.size)


def _mapped(path: Path, dtype: str | list) -> np.ndarray:
    """What a file holds, which may be empty (then it can't be mapped)."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


# --- batches -------------------------------------------------------------------------------------
def collate(rows: Sequence[TokenRow]) -> tuple[Tensor, ...]:
    """Rows → ids and weights (rows, longest rounded up), padded on the right."""
    longest = max(len(row) for row in rows)
    return collate_packed([[row] for row in rows], -(-longest // ROUND) * ROUND)[:2]


def collate_packed(blocks: Sequence[Sequence[TokenRow]], block: int) -> tuple[Tensor, ...]:
    """Blocks of rows → ids, weights and positions (blocks, block).

    A block is filled up on the right with a row of padding that counts nothing.  Nothing predicts
    a row's first token: what stands before it is another row's.
    """
    ids = torch.full((len(blocks), block), PAD, dtype=torch.long)
    weights, positions = torch.zeros(ids.shape), torch.zeros_like(ids)
    for k, rows in enumerate(blocks):
        place = 0
        for row in rows:
            after = place + len(row)
            ids[k, place:after] = torch.tensor(row.ids)
            weights[k, place + 1 : after] = torch.tensor(row.weights[1:])
            positions[k, place:after] = torch.arange(len(row))
            place = after
        positions[k, place:] = torch.arange(block - place)
    return ids, weights, positions


class EpochBatches:
    """Batches by step number, bucketed by length and shuffled; `block` is the longest row.

    A batch depends on the step alone, so training resumes anywhere; every process of several takes
    its share of each batch.
    """

    def __init__(self, rows_of: RowsOf, tokens_per_batch: int, seed: int, block: int = 1024):
        self.rows_of, self.tokens_per_batch = rows_of, tokens_per_batch
        self.seed, self.block = seed, block
        self.epochs = Epochs(self._plan)

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, ...]:
        """Ids and weights (rows, tokens) of that batch."""
        return collate(self.rows_at(step, rank, world_size))

    def rows_at(self, step: int, rank: int, world_size: int) -> list[TokenRow]:
        """The rows of that batch; where there are fewer than processes, one that counts nothing."""
        return self.epochs.at(step)[rank::world_size] or [TokenRow([PAD], [0.0])]

    def _plan(self, epoch: int, first: int) -> list[list]:
        rows = self.rows_of(epoch, first)
        if not rows:
            raise UserError("there are no rows to train on: the data step before made none")
        return self._batches(rows, random.Random(f"{self.seed} {epoch}"))

    def _batches(self, rows: list[TokenRow], rng: random.Random) -> list[list]:
        lengths = [len(row) for row in rows]
        if max(lengths) > self.block:
            found = f"a row has {max(lengths)} tokens, the model reads {self.block}"
            raise UserError(f"{found}: shorten the data or drop long rows when building it")
        padded = [-(-length // ROUND) * ROUND for length in lengths]
        batches = shuffled_buckets(lengths, self.tokens_per_batch, rng, padded)
        return [[rows[k] for k in batch] for batch in batches]
