"""`speechgpt instruct …` from the outside: build, check, export and import the sets of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CROSS_MODAL, CHAIN = (
    "03_cross_modal_instructions/cross_modal_set",
    "04_chain_of_modality_instructions/chain_set",
)


@pytest.mark.slow
def test_a_run_from_build_to_import(smoke_run: Path, command, tmp_path: Path) -> None:
    done = command("instruct", "build", "--recipe", "smoke", "--run-dir", smoke_run, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {line.split()[0] for line in done.stderr.splitlines()} == {"reused"}, "all of it is made"
    for name in (CROSS_MODAL, CHAIN):
        checked = command("instruct", "check", smoke_run / name, "--inventory", smoke_run)
        assert checked.returncode == 0, checked.stdout
        exported = command("instruct", "export", smoke_run / name, "-o", tmp_path / "x.jsonl")
        assert exported.returncode == 0, exported.stderr
        checked = command(
            "instruct", "check", tmp_path / "x.jsonl", "--inventory", smoke_run, "--json"
        )
        found = json.loads(checked.stdout)
        assert found["bad"] == 0 and found["good"] == facts[name]["rows"]
        back = tmp_path / Path(name).name
        imported = command(
            "instruct",
            "import",
            tmp_path / "x.jsonl",
            "-o",
            back,
            "--inventory",
            smoke_run,
            "--json",
        )
        assert json.loads(imported.stdout)["table_hash"] == facts[name]["table_hash"], (
            imported.stderr
        )


def test_check_prints_lines_and_exits_with_one(command, tmp_path: Path) -> None:
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
    done = command("instruct", "check", tmp_path / "x.jsonl", "--unit-count", 1000)
    assert done.returncode == 1
    assert f"{tmp_path / 'x.jsonl'}:2: unit out of range" in done.stdout
    assert f"{tmp_path / 'x.jsonl'}:3: not JSON" in done.stdout
    assert "3 lines, 1 well-formed (tts 1), 2 not" in done.stdout
    done = command("instruct", "check", tmp_path / "none.jsonl")
    assert done.returncode == 1 and done.stderr.startswith("error: no file")
