"""Rows of any length → blocks of one length with hardly any padding, where no row sees another.

Padding a batch of rows to the longest wastes what the others lack; here rows share blocks instead.
Positions start anew with every row, and transformers, given such positions and no cache, lets no
token look beyond the start of its row: a packed row has the loss it has alone.

Stage 1 of the release does something simpler, which `concatenate` does too: all rows one after the
other, cut wherever a block is full.
"""

from __future__ import annotations

import bisect
import random
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.rows import RowsOf, TokenRow, rows_of_epoch
from speechgpt_lib.language_model.vocabulary import PAD
from speechgpt_lib.training.epochs import Epochs


def pack(lengths: Sequence[int], block: int) -> list[list[int]]:
    """Which rows share a block (lists of row numbers): best fit, longest first.

    lengths (rows,) in tokens, none above `block`.
    """
    if lengths and max(lengths) > block:
        raise UserError(
            f"a row has {max(lengths)} tokens, a block {block}: "
            "drop or shorten long rows first (`fit_rows`)"
        )
    blocks: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens left → blocks
    rooms = 0  # bit n is set where a block has n tokens left: one shift finds the tightest room
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        roomy = rooms >> lengths[k]
        if roomy:
            room = lengths[k] + (roomy & -roomy).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            number, room = len(blocks), block
            blocks.append([])
        blocks[number].append(k)
        left = room - lengths[k]
        with_room.setdefault(left, []).append(number)
        rooms |= 1 << left
    return blocks


def fit_rows(
    rows: Sequence[TokenRow], limit: int, too_long: str = "error", end: frozenset[int] = frozenset()
) -> tuple[list[TokenRow], dict]:
    """Rows of at most `limit` tokens, and how many were kept, dropped and truncated.

    `too_long` "error" refuses longer ones; "drop" leaves them out; "truncate" cuts them but keeps
    their last token if it is one of `end`, so that a model still learns how to stop.
    """
    if too_long not in ("error", "drop", "truncate"):
        raise UserError(f"unknown way with long rows {too_long!r}: choose error, drop or truncate")
    counts, fitting = {"kept": 0, "dropped": 0, "truncated": 0}, []
    for row in rows:
        if len(row) <= limit:
            counts["kept"] += 1
            fitting.append(row)
        elif too_long == "drop":
            counts["dropped"] += 1
        elif too_long == "truncate":
            counts["truncated"] += 1
            fitting.append(_truncated(row, limit, end))
        else:
            raise UserError(
                f"a row has {len(row)} tokens, the model reads {limit}: "
                "shorten the data, or set too_long: drop or truncate in the recipe"
            )
    return fitting, counts


def _truncated(row: TokenRow, limit: int, end: frozenset[int]) -> TokenRow:
    ids, weights = row.ids, row.weights
    if ids[-1] in end:
        ids, weights = [*ids[: limit - 1], ids[-1]], [*weights[: limit - 1], weights[-1]]
    return TokenRow(ids[:limit], weights[:limit], row.name)


def concatenate(rows: Iterable[TokenRow], block: int) -> list[TokenRow]:
    """One row after the other, cut into blocks; what is left at the end is a shorter row.

    A block is called by the row it begins in.
    """
    ids, weights, starts, names = array("i"), array("f"), [], []
    for row in rows:
        starts.append(len(ids))
        names.append(row.name)
        ids.extend(row.ids)
        weights.extend(row.weights)
    all_ids, all_weights = np.array(ids), np.array(weights)
    blocks = []
    for k in range(0, len(ids), block):
        name = names[bisect.bisect_right(starts, k) - 1]
        name = f"the block that begins in {name}" if name else ""
        blocks.append(TokenRow(all_ids[k : k + block], all_weights[k : k + block], name))
    return blocks


PackedBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, weights, positions


def collate_packed(blocks: Sequence[Sequence[TokenRow]], block: int) -> PackedBatch:
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


class PackedBatches:
    """Batches of packed blocks by step number: the packed brother of `rows.EpochBatches`."""

    def __init__(self, rows_of: RowsOf, tokens_per_batch: int, seed: int, block: int = 1024):
        if tokens_per_batch < block:
            raise UserError(
                f"tokens_per_batch is {tokens_per_batch}, less than one block of {block}: "
                "raise it, or choose a smaller block"
            )
        self.rows_of, self.seed = rows_of, seed
        self.blocks_per_batch, self.block = tokens_per_batch // block, block
        self.epochs = Epochs(self._plan)

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> PackedBatch:
        """Ids, weights and positions (blocks, block) of that batch."""
        return collate_packed(self.epochs.at(step)[rank::world_size] or [[]], self.block)

    def rows_at(self, step: int, rank: int, world_size: int) -> list[TokenRow]:
        """The rows of that batch."""
        return [row for block in self.epochs.at(step)[rank::world_size] for row in block]

    def _plan(self, epoch: int, first: int) -> list[list[list[TokenRow]]]:
        rows, size = rows_of_epoch(self.rows_of, epoch, first), self.blocks_per_batch
        rng = random.Random(f"{self.seed} {epoch}")
        shuffled = rng.sample(rows, len(rows))
        numbers = pack([len(row) for row in shuffled], self.block)
        packed = [[shuffled[k] for k in block] for block in numbers]
        rng.shuffle(packed)
        return [packed[k : k + size] for k in range(0, len(packed), size)]
