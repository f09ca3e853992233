"""The steps that notebooks make: what they leave behind, on speech made here and recorded."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import yaml

from speechgpt_lib import recipes
from speechgpt_lib.pipeline.graph import make_all, order
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.names import notebook_of
from speechgpt_lib.runs.run import Run

pytestmark = pytest.mark.slow


def test_steps_left_facts_that_name_their_inputs(smoke_run: Path) -> None:
    facts = {
        p.parent.name: json.loads(p.read_text())
        for p in smoke_run.glob("[0-9][0-9]_*/*/facts.json")
    }
    assert {
        "corpus",
        "hubert",
        "inventory",
        "units",
        "vocoder",
        "text_to_unit",
        "chain_set",
        "adapter",
        "evaluation",
    } <= facts.keys()
    assert facts["units"]["inputs"]["inventory"]["key"] == facts["inventory"]["key"]
    for name, fact in facts.items():
        assert {
            "settings",
            "seed",
            "outputs",
            "versions",
            "wall_seconds",
            "peak_memory_mb",
            "metrics",
            "machine",
        } <= fact.keys(), name


def test_recorded_speech_goes_the_same_way(
    smoke_run: Path, reference: Path, tmp_path: Path
) -> None:
    """All steps on a LibriSpeech of 52 utterances, in the sizes of smoke; the notebooks on recorded
    speech are in test_miniature.py."""
    if not (reference / "speech" / "LibriSpeech").is_dir():
        pytest.skip(f"no LibriSpeech in {reference / 'speech'}")
    dialogues = tmp_path / "dialogues.jsonl"
    things = "house door river horse tree light".split()
    pairs = product(things, "field room hall town barn".split())
    turn = "[Human]: where is the {0}<eoh> [MOSS]: the {0} is in the {1}<eoa>"
    turns = [turn.format(*pair) for pair in pairs]
    lines = [json.dumps({"id": k, "plain_text": turn}) for k, turn in enumerate(turns)]
    dialogues.write_text("\n".join(lines))
    reader = {"reader": "librispeech", "root": "LibriSpeech"}
    changes: dict = {
        "data": str(reference / "speech"),
        "corpora": [
            reader | {"splits": ["test-other"], "role": ["aligned", "voice"]},
            reader | {"splits": ["dev-clean"], "role": "test"},
        ],
        "instructions.dialogues": str(dialogues),
        "instructions.questions_from": "text_to_unit",
        "instructions.answers_from": "text_to_unit",
    }
    small = yaml.safe_load((Path(recipes.__file__).parent / "smoke.yaml").read_text())
    parts = ("units", "vocoder", "text_to_unit", "language_model", "stage1", "stage2", "stage3")
    changes |= {part: small[part] for part in (*parts, "evaluation")}
    for stage in ("stage1", "stage2", "stage3"):
        changes[stage] |= {"too_long": "drop"}  # a recording longer than so small a model reads
    run_dir = tmp_path / "run"
    run = Run.create(run_dir, load_recipe("lab", changes), say=lambda line: None)
    steps = [name for name in order(run.recipe) if notebook_of(name) < "09"]
    make_all(run, steps)

    def folders(run: Path) -> set[str]:
        found = run.glob("0[1-8]_*/*/facts.json")
        return {path.parent.relative_to(run).as_posix() for path in found}

    again = {"01_unit_extraction/readings"}  # nobody can say again what was recorded
    assert folders(run_dir) == folders(smoke_run) - again
    corpus = json.loads((run_dir / "01_unit_extraction" / "corpus" / "facts.json").read_text())
    voices = corpus["metrics"]["voices"]
    assert len(voices) == 7 and all(voice.isdigit() for voice in voices), "nobody else speaks"
