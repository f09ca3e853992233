"""Rows of any length → blocks of one length with hardly any padding, where no row sees another.

Positions start anew with every row, and transformers, given such positions and no cache, lets no
token look beyond the start of its row: a packed row has the loss it has alone.  Stage 1 of the
release does something simpler, as `concatenate`: row after row, cut wherever a block is full.
"""

from __future__ import annotations

import bisect
import random
from array import array
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow, collate_packed


def pack(lengths: Sequence[int], block: int) -> list[list[int]]:
    """Numbers of the rows that share a block, best fit, longest first.

    lengths (rows,) in tokens, none above `block`.
    """
    if lengths and max(lengths) > block:
        raise UserError(f"a row has {max(lengths)} tokens, a block {block}: `fit_rows` first")
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
            ids, weights = row.ids, row.weights
            last = -1 if ids[-1] in end else limit - 1
            ids, weights = ([*kept[: limit - 1], kept[last]] for kept in (ids, weights))
            fitting.append(TokenRow(ids, weights, row.name))
        else:
            raise UserError(
                f"a row has {len(row)} tokens, the model reads {limit}: shorten the data, or set "
                "too_long: drop or truncate in the recipe"
            )
    return fitting, counts


def concatenate(rows: Sequence[TokenRow], block: int) -> list[TokenRow]:
    """One row after the other, cut into blocks; what is left at the end is a shorter row.

    A block is called by the row it begins in.
    """
    ids, weights, starts = array("i"), array("f"), []
    for row in rows:
        starts.append(len(ids))
        ids.extend(row.ids)
        weights.extend(row.weights)
    all_ids, all_weights, blocks = np.array(ids), np.array(weights), []
    for k in range(0, len(ids), block):
        name = rows[bisect.bisect_right(starts, k) - 1].name
        name = f"the block that begins in {name}" if name else ""
        blocks.append(TokenRow(all_ids[k : k + block], all_weights[k : k + block], name))
    return blocks


class PackedBatches(EpochBatches):
    """The same of packed blocks: a batch is as many blocks as `tokens_per_batch` has room for."""

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, ...]:
        """Ids, weights and positions (blocks, block) of that batch."""
        return collate_packed(self.epochs.at(step)[rank::world_size] or [[]], self.block)

    def rows_at(self, step: int, rank: int, world_size: int) -> list[TokenRow]:
        """The rows of that batch."""
        return [row for block in self.epochs.at(step)[rank::world_size] for row in block]

    def _batches(self, rows: list[TokenRow], rng: random.Random) -> list[list]:
        budget, block = self.tokens_per_batch, self.block
        if budget < block:
            raise UserError(f"tokens_per_batch {budget} is less than one block, {block}: raise it")
        size, shuffled = budget // block, rng.sample(rows, len(rows))
        numbers = pack([len(row) for row in shuffled], block)
        packed = [[shuffled[k] for k in own] for own in numbers]
        rng.shuffle(packed)
        return [packed[k : k + size] for k in range(0, len(packed), size)]
