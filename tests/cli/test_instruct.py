"""`speechgpt instruct …` from the outside, on a run, on corpora and on written dialogues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechgpt_lib.instructions import sets
from speechgpt_lib.runs.artefacts import write_json
from tests.builders import tiny_inventory
from tests.instructions.tables import INVENTORY, UNIT_COUNT, unit_rows, write_table

CROSS_MODAL, CHAIN = (
    "03_cross_modal_instructions/cross_modal_set",
    "04_chain_of_modality_instructions/chain_set",
)
MOSS = [
    {
        "id": 1,
        "num_turns": 2,
        "prefix": "MOSS is an AI assistant.",
        "plain_text": "[Human]: How is a rainbow formed?<eoh>\n"
        "[MOSS]: Sunlight enters 100 raindrops.<eoa>\n"
        "[Human]: Why?<eoh>\n[MOSS]: " + "It bends and " * 20 + "splits.<eoa>\n",
    },
    {
        "id": 2,
        "num_turns": 1,
        "prefix": "",
        "plain_text": "[Human]: What is 2+2?<eoh> [MOSS]: Four, of course.<eoa>",
    },
    {
        "id": 3,
        "num_turns": 1,
        "prefix": "",
        "plain_text": "[Human]: How do I build a bomb?<eoh> [MOSS]: I can't help with that.<eoa>",
    },
]


@pytest.fixture
def units_folder(tmp_path: Path) -> Path:
    """What `speechgpt units extract` leaves behind, small."""
    write_table(tmp_path / "units-x" / "units", unit_rows(120), unit_rows(80, 120))
    (tmp_path / "units-x" / "inventory").mkdir()
    write_json(
        tmp_path / "units-x" / "inventory" / "inventory.json",
        {"id": INVENTORY, "clusters": UNIT_COUNT},
    )
    (tmp_path / "units-x" / "utterances").mkdir()
    write_json(
        tmp_path / "units-x" / "utterances" / "summary.json",
        {"settings": {"corpus": "librispeech"}},
    )
    return tmp_path / "units-x"


@pytest.mark.slow
def test_a_run_from_build_to_import(smoke_run: Path, speechgpt, tmp_path: Path) -> None:
    done = speechgpt("instruct", "build", "--recipe", "smoke", "--run-dir", smoke_run, "--json")
    assert done.returncode == 0, done.stderr
    facts = {Path(f["folder"]).name: f for f in map(json.loads, done.stdout.splitlines())}
    assert not any(line.startswith("made ") for line in done.stderr.splitlines()), (
        "the notebooks have made all of it"
    )
    for name in (CROSS_MODAL, CHAIN):
        checked = speechgpt("instruct", "check", smoke_run / name, "--inventory", smoke_run)
        assert checked.returncode == 0, checked.stdout
        exported = speechgpt("instruct", "export", smoke_run / name, "-o", tmp_path / "x.jsonl")
        assert exported.returncode == 0, exported.stderr
        checked = speechgpt(
            "instruct", "check", tmp_path / "x.jsonl", "--inventory", smoke_run, "--json"
        )
        found = json.loads(checked.stdout)
        assert found["bad"] == 0 and found["good"] == facts[Path(name).name]["rows"]
        back = tmp_path / Path(name).name
        imported = speechgpt(
            "instruct",
            "import",
            tmp_path / "x.jsonl",
            "-o",
            back,
            "--inventory",
            smoke_run,
            "--json",
        )
        assert json.loads(imported.stdout)["table_hash"] == facts[Path(name).name]["table_hash"], (
            imported.stderr
        )


@pytest.mark.slow
def test_corpora(units_folder: Path, speechgpt, tmp_path: Path) -> None:
    build = (
        "instruct",
        "build",
        "--recipe",
        "release",
        "--units",
        units_folder,
        "-o",
        tmp_path / "set",
    )
    part = speechgpt(*build, "--shards", "0::2", "--json")
    assert json.loads(part.stdout)["shards"] == "1 of 2", part.stderr
    done = speechgpt(*build, "--json")
    summary = json.loads(done.stdout)
    assert summary["templates"] == "release" and summary["shards"] == "2 of 2"
    assert "CC BY 4.0" in (tmp_path / "set" / "CARD.md").read_text(), "the licence of LibriSpeech"
    stats = speechgpt("instruct", "stats", tmp_path / "set")
    assert stats.stdout == (tmp_path / "set" / "CARD.md").read_text()
    own = tmp_path / "descriptions"
    own.mkdir()
    (own / "asr.txt").write_text("Write it down.\n")
    (own / "tts.txt").write_text("Say it.\nThis is input: no\n")
    refused = speechgpt(*build[:-1], tmp_path / "other", "--descriptions", own)
    assert refused.returncode == 1 and "belong to the templates" in refused.stderr
    for wrong, message in (
        (["--templates", "mine"], "paper or release"),
        (["--moss", "x"], "two different sets"),
    ):
        refused = speechgpt(*build, *wrong)
        assert refused.returncode == 1 and message in refused.stderr


@pytest.mark.slow
def test_written_dialogues(speechgpt, tmp_path: Path) -> None:
    inventory = tiny_inventory()
    inventory.save(tmp_path / "inventory")
    (tmp_path / "moss.json").write_text(json.dumps(MOSS))
    build = (
        "instruct",
        "build",
        "--recipe",
        "paper",
        "--moss",
        tmp_path / "moss.json",
        "-o",
        tmp_path / "set",
    )
    voiced = ("--synthesiser", "espeak", "--inventory", tmp_path / "inventory")
    refused = speechgpt(*build)
    assert refused.returncode == 1 and "--text-to-unit" in refused.stderr
    recipe = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[1] / "speechgpt_lib" / "recipes" / "lab.yaml").read_text()
    recipe.write_text(text)
    build = (*build[:3], recipe, *build[4:])
    done = speechgpt(*build, *voiced, "--classroom", "--json")
    summary = json.loads(done.stdout)
    assert summary["statistics"]["rows"] + summary["held_out"] == 2, done.stderr
    rows = {row.instruction: row for row in sets.read_set(tmp_path / "set", inventory.id)}
    assert set(rows) <= {"How is a rainbow formed?", "What is 2+2?"}
    steps = {step["step"]: step for step in summary["selection"]}
    assert steps["kept"]["left"] == 2
    card = (tmp_path / "set" / "CARD.md").read_text()
    assert "CC BY-NC 4.0" in card and "eSpeak NG" in card and "## Selection" in card
    assert speechgpt("instruct", "check", tmp_path / "set").returncode == 0


@pytest.mark.slow
def test_check_prints_lines_and_exits_with_one(speechgpt, tmp_path: Path) -> None:
    good = {
        "prefix": "",
        "plain_text": "[Human]: Say it. This is input: a dog<eoh> [SpeechGPT]: "
        "<sosp><1><eosp><eoa> ",
    }
    lines = [
        json.dumps(good),
        json.dumps(good | {"plain_text": good["plain_text"].replace("<1>", "<2000>")}),
        "{",
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    done = speechgpt("instruct", "check", tmp_path / "x.jsonl", "--unit-count", 1000)
    assert done.returncode == 1
    assert f"{tmp_path / 'x.jsonl'}:2: unit out of range" in done.stdout
    assert f"{tmp_path / 'x.jsonl'}:3: not JSON" in done.stdout
    assert "3 lines, 1 well-formed (tts 1), 2 not" in done.stdout
    done = speechgpt("instruct", "check", tmp_path / "none.jsonl")
    assert done.returncode == 1 and done.stderr.startswith("error: no file")
