"""Dialogues become quadruplets in four formats: voiced once, by share, resumable."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.chain import Dialogue, build_chain, choose_format
from speechgpt_lib.instructions.sets import SetFacts
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from tests.instructions.tables import INVENTORY, UNIT_COUNT, Spelling, dialogues

SHARES = {"speech_speech": 0.4, "speech_text": 0.3, "text_speech": 0.2, "text_text": 0.1}
FACTS = SetFacts("chain", INVENTORY, UNIT_COUNT)


def build(items, out: Path, voicing=None, **options) -> dict:
    voicing = voicing or Spelling()
    return build_chain(
        items,
        out,
        voicing,
        options.pop("answers", voicing),
        options.pop("shares", SHARES),
        0,
        FACTS,
        **options,
    )


def test_formats_follow_their_shares() -> None:
    counts = collections.Counter(choose_format(f"d{k}", SHARES, 1) for k in range(4000))
    for name, share in SHARES.items():
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)
    assert {choose_format(f"d{k}", {"text_text": 1.0}, 1) for k in range(50)} == {"text_text"}
    thirds = {"speech_speech": 1 / 3, "speech_text": 1 / 3, "text_speech": 1 / 3 - 1e-9}
    assert {choose_format(f"d{k}", thirds, 1) for k in range(2000)} == set(thirds)


def test_quadruplets(tmp_path: Path) -> None:
    summary = build(dialogues(200), tmp_path / "s", shard_size=60)
    rows = list(sets.read_set(tmp_path / "s", INVENTORY))
    assert [r.id for r in rows] == [f"d{k}" for k in range(200)]
    voicing = Spelling()
    for row in rows:
        wanted = voicing.generate([row.instruction, row.response])
        assert row.instruction_units.tolist() == wanted[0].tolist()
        assert row.response_units.tolist() == wanted[1].tolist()
    assert set(summary["statistics"]["counts"]) == set(CHAIN_FORMATS)
    assert summary["shards"] == "4 of 4"
    assert summary["voicing"] == {"questions": "spelling", "answers": "spelling"}


def test_sharding_changes_nothing_but_the_files(tmp_path: Path) -> None:
    few, many = (
        build(dialogues(100), tmp_path / "a", shard_size=100),
        build(dialogues(100), tmp_path / "b", shard_size=7),
    )
    assert few["table_hash"] == many["table_hash"] and few["statistics"] == many["statistics"]


def test_parts_made_apart_are_the_whole(tmp_path: Path) -> None:
    """In any order; each voices its own shards, the call that joins them none."""
    whole = build(dialogues(50), tmp_path / "whole", shard_size=6)
    for start, texts in ((2, 28), (0, 36), (1, 36)):
        part = Spelling()
        options = {"shard_size": 6, "shards": slice(start, None, 3)}
        summary = build(dialogues(50), tmp_path / "parts", part, **options)
        assert len(part.asked) == texts
        assert (tmp_path / "parts" / "summary.json").exists() == (summary["shards"] == "9 of 9")
    joining = Spelling()
    assert build(dialogues(50), tmp_path / "parts", joining, shard_size=6) == whole
    assert not joining.asked
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_a_killed_build_voices_only_what_is_missing(tmp_path: Path) -> None:
    whole = build(dialogues(50), tmp_path / "whole", shard_size=10)
    dying = Spelling(dies_after=45)
    with pytest.raises(KeyboardInterrupt):
        build(dialogues(50), tmp_path / "again", dying, shard_size=10)
    again = Spelling()
    assert build(dialogues(50), tmp_path / "again", again, shard_size=10) == whole
    assert len(again.asked) == 100 - 40
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_spoken_questions_keep_their_units_and_equal_texts_are_voiced_once(tmp_path: Path) -> None:
    items = [
        dataclasses.replace(d, response="yes", units=np.array([k, 3]))
        for k, d in enumerate(dialogues(10))
    ]
    voicing = Spelling()
    build(items, tmp_path / "s", voicing)
    assert voicing.asked == ["yes"]
    assert [r.instruction_units.tolist() for r in sets.read_set(tmp_path / "s")] == [
        [k, 3] for k in range(10)
    ]


def test_bad_dialogues_are_set_aside_with_their_places(tmp_path: Path) -> None:
    bad = [
        Dialogue("a", "  ", "yes", source="f:1"),
        Dialogue("b", "why", "", source="f:2"),
        Dialogue("c", "what is [ta] here", "yes", source="f:3"),
        Dialogue("d", "why", "it is <12>", source="f:4"),
        Dialogue("e", "why", "42", source="f:5"),
        Dialogue("f", "why", "yes", units=np.array([], dtype=np.int64), source="f:6"),
        Dialogue("g", "why", "yes", units=np.array([3, UNIT_COUNT]), source="f:7"),
        Dialogue("d0", "again", "yes", source="f:8"),
        Dialogue("h", "?!", "yes", source="f:9"),
    ]
    summary = build(dialogues(5) + bad, tmp_path / "s")
    found = {
        r["source"]: r["reason"]
        for r in pyarrow.parquet.read_table(next((tmp_path / "s").glob("quarantine-*"))).to_pylist()
    }
    assert found == {
        "f:1": "empty instruction",
        "f:2": "empty response",
        "f:3": "marker in text",
        "f:4": "marker in text",
        "f:5": "can't be voiced",
        "f:6": "no units",
        "f:7": "unit out of range",
        "f:8": "duplicate id",
        "f:9": "no units",
    }
    assert summary["statistics"]["rows"] == 5
    assert sum(summary["quarantined"].values()) == 9


def test_held_out_questions(tmp_path: Path) -> None:
    summary = build(dialogues(300), tmp_path / "s", held_out_share=0.2)
    held = {r.instruction for r in sets.read_set(tmp_path / "s", part="held_out")}
    kept = {r.instruction for r in sets.read_set(tmp_path / "s")}
    assert 30 < len(held) < 90 and not held & kept and len(held | kept) == 300
    assert summary["held_out"] == len(held)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inventory"):
        build(dialogues(3), tmp_path / "s", Spelling(inventory="other"))
    with pytest.raises(UserError, match="inventory"):
        build(dialogues(3), tmp_path / "s", answers=Spelling(inventory="other"))
    build(dialogues(3), tmp_path / "s")
    with pytest.raises(UserError, match="made from other rows"):
        build(dialogues(4), tmp_path / "s")


def test_no_dialogues_at_all(tmp_path: Path) -> None:
    assert build([], tmp_path / "s")["statistics"]["rows"] == 0
    assert list(sets.read_set(tmp_path / "s")) == []
