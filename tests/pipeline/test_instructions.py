"""The steps of the two sets: what becomes of dialogues that nobody can speak."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline import instructions
from speechgpt_lib.pipeline.step import Job
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
from tests.instructions.tables import INVENTORY, UNIT_COUNT, Spelling


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ("[Human]: how many<eoh> [MOSS]: 12<eoa>", "can't be voiced 1"),
        ("[Human]: say it<eoh> [MOSS]: " + "word " * 40 + "<eoa>", "response too long 2"),
        ("nobody speaks", "text outside a turn 2"),
    ],
)
def test_a_file_of_which_no_dialogue_can_be_used_is_refused(
    tmp_path: Path, monkeypatch, turn: str, reason: str
) -> None:
    records = (json.dumps({"id": k, "plain_text": turn}) for k in range(2))
    (tmp_path / "moss.jsonl").write_text("\n".join(records))
    given = {"dialogues": "moss.jsonl", "written_dialogues": 0}
    changes = {"data": str(tmp_path)} | {f"instructions.{k}": v for k, v in given.items()}
    run = Run.create(tmp_path / "run", load_recipe("smoke", changes), say=lambda line: None)
    monkeypatch.setattr(instructions, "read_units", lambda *given: [])
    monkeypatch.setattr(instructions, "voicing", lambda job, way: Spelling())
    inventory = SimpleNamespace(id=INVENTORY, count=UNIT_COUNT)
    monkeypatch.setattr(Job, "inventory", lambda job: inventory)
    (tmp_path / "work").mkdir()
    job = Job(run, tmp_path / "work", {"units": SimpleNamespace(path=tmp_path)})
    words = rf"moss.jsonl: none of 2 records became a row \(.*({reason}).*speech-instruct.md"
    with pytest.raises(UserError, match=words):
        instructions.make_chain_set(job)
