"""Rows of tokens on disk are the rows that were written, whatever is asked of them."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.language_model.packing import concatenate, fit_rows
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow, collate, write_table

tokens = st.lists(
    st.tuples(st.integers(0, 40_000), st.sampled_from([0.0, 0.1, 1.0, 5.0])),
    min_size=1,
    max_size=30,
)


@given(st.lists(st.tuples(tokens, st.text(max_size=8))), st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, contents, data: st.DataObject
) -> None:
    rows = [
        TokenRow([i for i, _ in pairs], [w for _, w in pairs], name) for pairs, name in contents
    ]
    table = write_table(tmp_path_factory.mktemp("table") / "rows", rows, 40_001)
    assert len(table) == len(rows)
    for written, read in zip(rows, table, strict=True):
        assert (read.ids, read.weights, read.name, len(read)) == (
            written.ids,
            written.weights,
            written.name,
            len(written),
        )
    if rows:
        number = data.draw(st.integers(-len(rows), len(rows) - 1))
        assert table[number].ids == rows[number].ids
    with pytest.raises(IndexError):
        table[len(rows)]


def test_they_take_part_as_other_rows_do(tmp_path: Path) -> None:
    """Sampled, shortened, concatenated and batched with the same result."""
    rng = random.Random(0)
    rows = []
    for k in range(40):
        length = rng.randrange(5, 40)
        rows.append(
            TokenRow(
                [rng.randrange(3, 70_000) for _ in range(length)],
                [0.0] + [1.0] * (length - 1),
                f"asr-{k}",
            )
        )
    table = write_table(tmp_path / "rows", rows, 70_000)
    assert [r.ids for r in random.Random(1).sample(table, 12)] == [
        r.ids for r in random.Random(1).sample(rows, 12)
    ]
    for ours, theirs in zip(
        fit_rows(table, 20, "truncate")[0], fit_rows(rows, 20, "truncate")[0], strict=True
    ):
        assert list(ours.ids) == list(theirs.ids) and ours.name == theirs.name
    blocks, expected = concatenate(table, 64), concatenate(rows, 64)
    assert [b.ids.tolist() for b in blocks] == [b.ids.tolist() for b in expected] and blocks[
        1
    ].name == expected[1].name
    assert (collate(blocks)[0] == collate(expected)[0]).all()
    ours, theirs = (EpochBatches(lambda epoch, step, r=r: list(r), 200, 0) for r in (table, rows))
    for step in range(5):
        assert all((a == b).all() for a, b in zip(ours(step), theirs(step), strict=True))


def test_a_large_table_takes_hardly_any_memory(tmp_path: Path) -> None:
    rows = (TokenRow([k % 30_000] * 200, [1.0] * 200, f"row {k}") for k in range(5000))
    tracemalloc.start()
    table = write_table(tmp_path / "rows", rows, 33_000)
    held = list(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        sum(len(row) for row in held) == 1_000_000
        and (tmp_path / "rows" / "tokens").stat().st_size == 3_000_000
    )
    assert peak < 2_000_000, "a million tokens as lists would take 16 million bytes at least"
