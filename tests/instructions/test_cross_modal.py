"""Unit tables become the cross-modal set, by a repeatable draw; bad rows are set aside."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from speechgpt_lib.corpora.held_out import same_words
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.cross_modal import Pairing, build_cross_modal
from speechgpt_lib.instructions.descriptions import choose_description, load_descriptions
from speechgpt_lib.units.extract import SCHEMA
from tests.instructions.tables import INVENTORY, UNIT_COUNT, unit_rows, write_table


def build(folder: Path, out: Path, pairing: Pairing | None = None, **options) -> dict:
    options = {"inventory_id": INVENTORY, "unit_count": UNIT_COUNT} | options
    return build_cross_modal([folder], out, pairing or Pairing(held_out_share=0.0), **options)


def quarantine(out: Path) -> list[dict]:
    return [
        row
        for path in sorted(out.glob("quarantine-*.parquet"))
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def contents(out: Path) -> dict[str, tuple]:
    return {
        r.id: (r.task, r.description, r.text, r.voice, tuple(r.units)) for r in sets.read_set(out)
    }


def test_every_pair_becomes_one_row_with_a_description_of_its_task(tmp_path: Path) -> None:
    summary = build(write_table(tmp_path / "t", unit_rows(600)), tmp_path / "s")
    rows = list(sets.read_set(tmp_path / "s", INVENTORY))
    assert len(rows) == summary["statistics"]["rows"] == 600
    assert all(row.description in load_descriptions(row.task) for row in rows)
    assert all(row.description == choose_description(row.task, row.id, 0) for row in rows)
    tasks = collections.Counter(row.task for row in rows)
    assert 240 < tasks["asr"] < 360
    assert summary["statistics"]["counts"] == dict(sorted(tasks.items()))
    wanted = {r["id"]: (r["text"], r["units"]) for r in unit_rows(600)}
    assert {row.id[4:]: (row.text, row.units.tolist()) for row in rows} == wanted


def test_both_tasks_for_each_pair_and_one_voice_that_speaks(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t", unit_rows(40))
    build(
        table,
        tmp_path / "s",
        Pairing(pairing="both", speaking_voices=("Female2",), held_out_share=0.0),
    )
    rows = list(sets.read_set(tmp_path / "s"))
    assert collections.Counter(r.task for r in rows) == {"asr": 40, "tts": 20}
    assert {r.voice for r in rows if r.task == "tts"} == {"Female2"}


def test_neither_sharding_nor_order_changes_a_row(tmp_path: Path) -> None:
    rows = unit_rows(300)
    pairing = Pairing(held_out_share=0.2)
    one = build(write_table(tmp_path / "one", rows), tmp_path / "a", pairing)
    three = build(
        write_table(tmp_path / "three", rows[200:], rows[:50], rows[50:200][::-1]),
        tmp_path / "b",
        pairing,
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert one["table_hash"] == three["table_hash"]
    assert one["statistics"] == three["statistics"]
    other = build(tmp_path / "one", tmp_path / "c", Pairing(seed=1, held_out_share=0.2))
    assert other["table_hash"] != one["table_hash"]


def test_jobs_of_an_array_make_what_one_call_makes(tmp_path: Path) -> None:
    rows = unit_rows(300)
    table = write_table(tmp_path / "t", rows[:100], rows[100:200], rows[200:])
    whole = build(table, tmp_path / "whole")
    first = build(table, tmp_path / "parts", shards=slice(0, None, 2))
    assert first["shards"] == "2 of 3" and not (tmp_path / "parts" / "summary.json").exists()
    with pytest.raises(UserError, match="unfinished"):
        list(sets.read_set(tmp_path / "parts"))
    assert build(table, tmp_path / "parts", shards=slice(1, None, 2)) == whole
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name


def test_an_interrupted_build_goes_on_without_loss_or_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(300)
    table = write_table(tmp_path / "t", rows[:100], rows[100:200], rows[200:])
    whole = build(table, tmp_path / "whole")
    seen, add = [], sets.ShardWriter.add

    def stop_once(writer, rows, held_out) -> None:
        add(writer, rows, held_out)
        seen.append(rows.num_rows)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sets.ShardWriter, "add", stop_once)
    with pytest.raises(KeyboardInterrupt):
        build(table, tmp_path / "again")
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["rows-00000.parquet"]
    assert build(table, tmp_path / "again") == whole
    assert sum(seen[2:]) == 200
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_jobs_with_other_settings_do_not_mix(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t", unit_rows(30), unit_rows(30, 30))
    build(table, tmp_path / "s", shards=slice(0, 1))
    with pytest.raises(UserError, match="other settings"):
        build(table, tmp_path / "s", Pairing(seed=3, held_out_share=0.0), shards=slice(1, 2))
    assert not (tmp_path / "s" / "summary.json").exists()


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """SIGKILL in the middle of a shard, again and again, until it gets through."""
    table = write_table(tmp_path / "t", *(unit_rows(3000, 3000 * k) for k in range(6)))
    whole = build(table, tmp_path / "whole")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.instructions.test_cross_modal import build, sets\n"
        "budget, add = int(sys.argv[3]), sets.ShardWriter.add\n"
        "def die(writer, rows, held_out):\n"
        "    global budget\n"
        "    add(writer, rows, held_out)\n"
        "    budget -= rows.num_rows\n"
        "    if budget < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sets.ShardWriter.add = die\n"
        "build(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    returned = []
    for budget in (5000, 4000, 3500, 100_000):
        command = [sys.executable, "-c", code, str(table), str(tmp_path / "again"), str(budget)]
        returned.append(subprocess.run(command, cwd=Path(__file__).parents[2]).returncode)
    assert returned == [-9, -9, -9, 0]
    assert sets.read_summary(tmp_path / "again") == whole
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_sentence_is_never_on_both_sides(tmp_path: Path) -> None:
    rows = unit_rows(400)
    for k, row in enumerate(rows):  # readers repeat sentences, in their own spelling
        row["text"] = f"Sentence {k // 4}!" if k % 2 else f"sentence {k // 4}"
    summary = build(
        write_table(tmp_path / "t", rows[:150], rows[150:]),
        tmp_path / "s",
        Pairing(held_out_share=0.3),
    )
    kept = {same_words(r.text) for r in sets.read_set(tmp_path / "s")}
    held = {same_words(r.text) for r in sets.read_set(tmp_path / "s", part="held_out")}
    assert kept and held and not kept & held
    assert len(kept | held) == 100
    assert summary["held_out"] + summary["statistics"]["rows"] == 400


def test_splits_of_the_corpus_can_be_held_out_instead(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t",
        unit_rows(10) + unit_rows(5, 10, split="test") + unit_rows(5, 15, split="unlabelled"),
    )
    build(table, tmp_path / "s", Pairing(splits=("train",), held_out_splits=("test",)))
    assert len(list(sets.read_set(tmp_path / "s"))) == 10
    assert {r.id[4:] for r in sets.read_set(tmp_path / "s", part="held_out")} == {
        f"u{k:05d}" for k in range(10, 15)
    }


def test_what_cannot_be_used_is_set_aside_with_its_place(tmp_path: Path) -> None:
    rows = unit_rows(12)
    rows[1]["text"] = "  "
    rows[2]["units"] = rows[2]["durations"] = []
    rows[3]["units"] = [1, UNIT_COUNT, 2]
    rows[4]["units"] = [1, -1, 2]
    rows[5]["text"] = "say <eoh> now"
    rows[6]["text"] = "the unit <12> is loud"
    rows[7]["id"] = "u00000"
    more = unit_rows(3, 20)
    more[1]["id"] = "u00000"
    table = write_table(tmp_path / "t", rows, more)
    summary = build(table, tmp_path / "s")
    found = {
        (r["source"].rsplit("/", 1)[1], r["place"]): r["reason"] for r in quarantine(tmp_path / "s")
    }
    assert found == {
        ("units-00000.parquet", "row 1"): "empty text",
        ("units-00000.parquet", "row 2"): "no units",
        ("units-00000.parquet", "row 3"): "unit out of range",
        ("units-00000.parquet", "row 4"): "unit out of range",
        ("units-00000.parquet", "row 5"): "marker in text",
        ("units-00000.parquet", "row 6"): "marker in text",
        ("units-00000.parquet", "row 7"): "duplicate id",
        ("units-00001.parquet", "row 1"): "duplicate id",
    }
    assert summary["quarantined"] == {
        "duplicate id": 2,
        "empty text": 1,
        "marker in text": 2,
        "no units": 1,
        "unit out of range": 2,
    }
    assert summary["statistics"]["rows"] == 15 - 8
    details = {r["place"]: r["detail"] for r in quarantine(tmp_path / "s")}
    assert "20" in details["row 3"] and "0 to 19" in details["row 3"]


def test_broken_utf8_is_set_aside(tmp_path: Path) -> None:
    rows = unit_rows(5)
    good = pyarrow.Table.from_pylist(rows, SCHEMA)
    texts = [row["text"].encode() for row in rows]
    texts[3] = b"caf\xe9 \xff"
    column = pyarrow.array(texts, pyarrow.binary())
    strange = pyarrow.StringArray.from_buffers(5, column.buffers()[1], column.buffers()[2])
    table = good.set_column(
        good.schema.get_field_index("text"), "text", strange
    ).replace_schema_metadata({"inventory": INVENTORY})
    (tmp_path / "t").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "t" / "units-00000.parquet")
    summary = build(tmp_path / "t", tmp_path / "s")
    assert summary["quarantined"] == {"broken UTF-8": 1}
    assert quarantine(tmp_path / "s")[0]["place"] == "row 3"
    assert summary["statistics"]["rows"] == 4


def test_refusals(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t", unit_rows(5))
    with pytest.raises(UserError, match="other.*feed|feed.*other"):
        build(table, tmp_path / "s", inventory_id="other")
    with pytest.raises(UserError, match="no unit table"):
        build(tmp_path / "nowhere", tmp_path / "s")
    build(table, tmp_path / "s")
    with pytest.raises(UserError, match="made from other rows"):
        build(table, tmp_path / "s", Pairing(seed=5, held_out_share=0.0))
    with pytest.raises(UserError, match="missing"):
        list(sets.read_set(tmp_path / "none"))
    with pytest.raises(UserError, match="inventory"):
        list(sets.read_set(tmp_path / "s", "other"))
    write_table(tmp_path / "u", unit_rows(5), unit_rows(5, 5))
    build(tmp_path / "u", tmp_path / "v")
    (tmp_path / "u" / "units-00001.parquet").unlink()
    with pytest.raises(UserError, match="no shard of this set"):
        build(tmp_path / "u", tmp_path / "v")
    damaged = tmp_path / "v" / "rows-00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        build(table, tmp_path / "v")


def test_our_own_descriptions(tmp_path: Path) -> None:
    lists = {"asr": ("Write it.",), "tts": ("Say it.", "Read it out.")}
    build(
        write_table(tmp_path / "t", unit_rows(30)),
        tmp_path / "s",
        Pairing(held_out_share=0.0, descriptions=lists),
    )
    assert {r.description for r in sets.read_set(tmp_path / "s")} == {
        "Write it.",
        "Say it.",
        "Read it out.",
    }


def test_the_card_says_what_matters(tmp_path: Path) -> None:
    facts = [{"name": "moss", "title": "MOSS", "licence": "CC BY-NC 4.0"}]
    summary = build(write_table(tmp_path / "t", unit_rows(50)), tmp_path / "s", source_facts=facts)
    card = (tmp_path / "s" / "CARD.md").read_text()
    for wanted in (
        "CC BY-NC 4.0",
        INVENTORY,
        summary["table_hash"],
        "| asr |",
        "| tts |",
        "Held-out sentences",
        "units**: 150 in all",
    ):
        assert wanted in card, wanted
    shares = [
        float(line.split("|")[3].strip(" %"))
        for line in card.splitlines()
        if line.startswith(("| asr", "| tts"))
    ]
    assert sum(shares) == pytest.approx(100, abs=0.2)
