"""Utterance tables give back what was written, as a stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.corpora.tables import Utterance, read_utterances, table_shards, write_shard
from speechgpt_lib.errors import UserError
from tests.builders import noise


def utterance(number: int, voice: str = "Male1") -> Utterance:
    phones = [Phone(0.0, 0.25, ""), Phone(0.25, 0.5, "ɡ")]
    wave = noise(0.5, number)
    return Utterance(
        f"{number:06d}",
        f"text {number} ü",
        "an answer",
        "sum",
        voice,
        "train",
        0.5,
        175,
        wave=wave,
        phones=phones,
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_shard(tmp_path / "utterances-00001.parquet", [utterance(2, "Male2")])
    write_shard(tmp_path / "utterances-00000.parquet", [utterance(0), utterance(1)])
    return tmp_path


def test_rows_come_back_in_the_order_of_the_shards(table: Path) -> None:
    for k, found in enumerate(read_utterances(table, audio=True, phones=True)):
        expected = utterance(k, "Male2" if k == 2 else "Male1")
        wave = found.read()
        assert found.phones == expected.phones and np.abs(wave - expected.wave).max() < 1e-4
        assert wave.dtype == np.float32
        plain = [
            (u.id, u.text, u.answer, u.kind, u.voice, u.rate, u.pitch, u.split, u.seconds)
            for u in (found, expected)
        ]
        assert plain[0] == plain[1]
    assert k == 2


def test_audio_and_phones_come_only_when_asked_for(table: Path) -> None:
    assert [(u.audio, u.phones) for u in read_utterances(table)] == [(b"", [])] * 3


def test_rows_can_be_chosen(table: Path) -> None:
    assert [u.id for u in read_utterances(table, where={"id": {"000001"}})] == ["000001"]
    assert [u.id for u in read_utterances(table, where={"voice": "Male2"})] == ["000002"]
    assert [
        u.id
        for u in read_utterances(
            table, where={"voice": ["Male1", "Male2"], "id": ["000000", "000002"]}
        )
    ] == ["000000", "000002"]
    assert list(read_utterances(table, where={"voice": "nobody"})) == []
    shards = table_shards(table)[1:]
    assert [u.id for u in read_utterances(table, shards=shards)] == ["000002"]


def test_no_table_is_refused_with_the_notebook_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no utterance table.*01_unit_extraction"):
        next(read_utterances(tmp_path / "none"))


def test_a_shard_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    def broken():
        yield utterance(0)
        raise RuntimeError("no more speech")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "utterances-00000.parquet", broken())
    assert not list(tmp_path.iterdir())
