"""Records are the rows of the tables: same names, same order, and back again unchanged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from speechgpt_lib.instructions.card import Statistics
from speechgpt_lib.instructions.records import (
    SCHEMAS,
    VERBATIM,
    ChainRecord,
    CrossModalRecord,
    Seen,
    row_digest,
    to_records,
    to_table,
)
from speechgpt_lib.instructions.sets import record_to_row
from speechgpt_lib.instructions.templates import chain_row, cross_modal_row

U, V = np.array([12, 7, 12]), np.array([3])
PAIR = CrossModalRecord("asr-1", "asr", "Write it.", "two dogs", "Male1", U)
CHAIN = ChainRecord("d1", "speech_text", "where", "where is it", "in the box", U, V)


@pytest.mark.parametrize(("kind", "record"), [("cross_modal", PAIR), ("chain", CHAIN)])
def test_records_are_rows_of_their_table(kind: str, record) -> None:
    assert [*SCHEMAS[kind].names, "verbatim"] == list(vars(record))
    written = replace(record, verbatim="as found")
    for schema, wanted in ((SCHEMAS[kind], record), (SCHEMAS[kind].append(VERBATIM), written)):
        (batch,) = to_table([wanted, wanted], schema).to_batches()
        found = list(to_records(batch))[1]
        for name, value in vars(wanted).items():
            assert np.array_equal(vars(found)[name], value), name
    with pytest.raises(FrozenInstanceError):
        record.id = "another"


def test_a_digest_is_of_what_the_row_says() -> None:
    for record in (PAIR, CHAIN):
        assert row_digest(record) == row_digest(replace(record, id="another", verbatim="line"))
    assert row_digest(PAIR) != row_digest(replace(PAIR, units=V))
    assert row_digest(CHAIN) == row_digest(replace(CHAIN, response_units=U)), (
        "its format hides them"
    )
    assert row_digest(CHAIN) != row_digest(replace(CHAIN, format="speech_speech"))


def test_records_become_rows() -> None:
    assert record_to_row(PAIR).text() == cross_modal_row("asr", "Write it.", "two dogs", U).text()
    assert record_to_row(PAIR, "release").name == "asr-1"
    wanted = chain_row("speech_text", "where is it", "in the box", U, V)
    assert record_to_row(CHAIN).text() == wanted.text()


def test_statistics_add_up_over_shards() -> None:
    both, first, second = Statistics(), Statistics(), Statistics()
    for record, part in ((PAIR, first), (CHAIN, second), (replace(PAIR, units=V), second)):
        both.add(record)
        part.add(record)
    merged = Statistics()
    for part in (first, second):
        found, again = json.loads(json.dumps(part.to_json())), Statistics()
        again.merge(found)
        assert again.to_json() == part.to_json()
        merged.merge(found)
    assert merged.to_json() == both.to_json()
    assert both.digest == sum(map(row_digest, (PAIR, CHAIN, replace(PAIR, units=V)))) % 2**256
    assert both.unit_usage == Counter({12: 4, 7: 2, 3: 1})
    summary = both.summary()
    assert summary["rows"] == 3 and summary["counts"] == {"asr": 2, "speech_text": 1}
    assert "response_units" not in summary["lengths"], "the format shows none"
    assert summary["lengths"]["units"] == {
        "total": 4,
        "quantiles": {"least": 1, "5 %": 1, "median": 1, "95 %": 3, "most": 3},
        "histogram": [{"from": 1, "to": 1, "rows": 1}, {"from": 3, "to": 4, "rows": 1}],
    }


def test_seen_remembers_texts() -> None:
    seen = Seen()
    assert [seen.is_new(text) for text in ("a", "b", "a", "\ud800", "\ud800")] == [
        True,
        True,
        False,
        True,
        False,
    ]
