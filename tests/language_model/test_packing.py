"""Packed rows: full blocks, no row that sees another, and the loss each row has alone."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.training import lab_rows
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.language_model.packing import (
    PackedBatches,
    collate_packed,
    concatenate,
    fit_rows,
    pack,
)
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow, collate
from speechgpt_lib.training.attention import NAME, set_attention
from tests.builders import tiny_language_model, tiny_vocabulary

BACK_ENDS = (
    "sdpa",
    "eager",
    NAME,
    # compiled at first use
    pytest.param(
        "flex_attention",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
        ],
    ),
)


def rows_of_lengths(lengths, seed: int = 0) -> list[TokenRow]:
    rng = random.Random(seed)
    return [
        TokenRow([1] + [rng.randrange(3, 300) for _ in range(n - 1)], [1.0] * n) for n in lengths
    ]


def utilisation(lengths: list[int], block: int) -> float:
    """Share of the blocks' places that hold a token of a row."""
    return sum(lengths) / (len(pack(lengths, block)) * block)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(tiny_vocabulary())


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_row_is_packed_once_and_fits(lengths) -> None:
    blocks = pack(lengths, 64)
    assert sorted(k for numbers in blocks for k in numbers) == list(range(len(lengths)))
    assert all(sum(lengths[k] for k in numbers) <= 64 for numbers in blocks)
    assert len(blocks) <= max(1, -(-2 * sum(lengths) // 64)), "no two blocks could share one"


def test_blocks_of_real_lengths_are_full() -> None:
    rng = random.Random(1)
    lengths = [min(512, max(20, round(rng.lognormvariate(4.9, 0.5)))) for _ in range(3000)]
    assert utilisation(lengths, 1024) > 0.97


@pytest.mark.parametrize("block", [512, 1024])
def test_blocks_of_the_labs_rows_are_full(block: int) -> None:
    assert utilisation([len(row) for row in lab_rows(2000)], block) > 0.97


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_no_row_sees_its_neighbours(model, back_end) -> None:
    """Through the call of training: change the other rows of a block, a row's states stay."""
    set_attention(model, back_end)
    first, second, third = rows_of_lengths([10, 17, 12])
    other = rows_of_lengths([10, 17, 12], seed=9)
    hidden = []
    for rows in ((first, second, third), (other[0], second, other[2])):
        ids, _, positions = collate_packed([rows], 48)
        with torch.inference_mode():
            hidden.append(
                model.model(
                    input_ids=ids, position_ids=positions, use_cache=False
                ).last_hidden_state[0]
            )
    assert torch.allclose(hidden[0][10:27], hidden[1][10:27], atol=1e-6)
    assert not torch.allclose(hidden[0][:10], hidden[1][:10], atol=1e-2), (
        "the test can see a difference"
    )
    alone = collate([second])[0][:, :17]
    with torch.inference_mode():
        assert torch.allclose(
            hidden[0][10:27],
            model.model(input_ids=alone, use_cache=False).last_hidden_state[0],
            atol=1e-5,
        )


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_the_packed_loss_is_the_sum_of_the_rows_losses(model, back_end) -> None:
    set_attention(model, back_end)
    rows = rows_of_lengths([5, 30, 12, 44, 9, 21])
    score = CausalLoss(model)
    packed = [[rows[k] for k in numbers] for numbers in pack([len(r) for r in rows], 64)]
    assert len(packed) < len(rows)
    with torch.inference_mode():
        loss, weight = score(*collate_packed(packed, 64))
        alone = [score(*collate([row])) for row in rows]
    assert weight == sum(w for _, w in alone)
    assert (loss / weight).item() == pytest.approx(
        (sum(each for each, _ in alone) / weight).item(), abs=1e-5
    )


@pytest.mark.parametrize("back_end", ["sdpa", "eager", NAME])
def test_gradients_too(model, back_end) -> None:
    set_attention(model, back_end)
    rows = rows_of_lengths([15, 30, 12])
    gradients = []
    for batch in (collate(rows), collate_packed([rows], 64)):
        model.zero_grad()
        loss, weight = CausalLoss(model)(*batch)
        (loss / weight).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)) < 1e-5


def test_long_rows_are_refused_dropped_or_cut_with_their_end() -> None:
    rows = [*rows_of_lengths([5, 20]), TokenRow([1, *range(10, 30), 7], [0.5] * 22)]
    with pytest.raises(UserError, match="20 tokens, the model reads 8.*too_long"):
        fit_rows(rows, 8)
    kept, counts = fit_rows(rows, 8, "drop")
    assert counts == {"kept": 1, "dropped": 2, "truncated": 0} and len(kept) == 1
    cut, counts = fit_rows(rows, 8, "truncate", frozenset({7}))
    assert counts["truncated"] == 2 and [len(row) for row in cut] == [5, 8, 8]
    assert cut[2].ids == [1, 10, 11, 12, 13, 14, 15, 7] and cut[1].ids == rows[1].ids[:8]
    with pytest.raises(UserError, match="error, drop or truncate"):
        fit_rows(rows, 8, "squeeze")
    with pytest.raises(UserError, match="20 tokens, a block 8"):
        pack([20], 8)


def test_concatenation_loses_nothing() -> None:
    rows = rows_of_lengths([5, 20, 9])
    blocks = concatenate(rows, 8)
    assert [len(b) for b in blocks] == [8, 8, 8, 8, 2]
    assert [i for b in blocks for i in b.ids] == [i for r in rows for i in r.ids]
    named = concatenate([TokenRow([1] * 5, [1.0] * 5, "a"), TokenRow([1] * 20, [1.0] * 20, "b")], 8)
    assert [b.name for b in named] == [f"the block that begins in {name}" for name in "abbb"]


def test_batches_depend_on_the_step_alone_and_are_shared_out() -> None:
    rows = rows_of_lengths([random.Random(k).randrange(5, 60) for k in range(80)])
    plan = lambda epoch, step: rows  # noqa: E731
    batches = PackedBatches(plan, 256, seed=3, block=64)
    late = batches(9)
    assert all(
        torch.equal(a, b)
        for a, b in zip(PackedBatches(plan, 256, seed=3, block=64)(9), late, strict=True)
    )
    whole, halves = batches(2), [batches(2, rank, 2) for rank in range(2)]
    assert torch.equal(
        torch.cat([whole[0][0::2], whole[0][1::2]]), torch.cat([h[0] for h in halves])
    )
    assert sum(h[1].sum() for h in halves) == whole[1].sum()
    seen = sum(int((batches(k)[0] == 1).sum()) for k in range(len(batches.epochs.batches)))
    assert seen >= 80
    with pytest.raises(UserError, match="less than one block"):
        PackedBatches(plan, 32, seed=0, block=64)(0)
    with pytest.raises(UserError, match="no rows"):
        PackedBatches(lambda epoch, step: [], 64, seed=0, block=64)(0)


def test_a_process_without_a_block_takes_part_with_nothing() -> None:
    rows = rows_of_lengths([50])
    ids, weights, positions = PackedBatches(lambda e, s: rows, 64, seed=0, block=64)(
        0, rank=1, world_size=2
    )
    assert ids.shape == (1, 64) and weights.sum() == 0 and positions[0].tolist() == list(range(64))


def test_less_padding_than_in_batches_of_like_length() -> None:
    rng = random.Random(4)
    rows = rows_of_lengths([rng.randrange(30, 400) for _ in range(400)])
    padded, packed = (
        EpochBatches(lambda e, s: rows, 4096, 0),
        PackedBatches(lambda e, s: rows, 4096, 0, block=1024),
    )
    padded(0), packed(0)
    sizes = [
        sum(batches(k)[0].numel() for k in range(len(batches.epochs.batches)))
        for batches in (padded, packed)
    ]
    assert sizes[1] < sizes[0] and sum(map(len, rows)) / sizes[1] > 0.97
