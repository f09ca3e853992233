"""All notebooks with the smallest recipe: what they leave behind, what a second run reuses."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nbformat
import pytest

from speechgpt_lib.notebook.runner import run_notebooks

pytestmark = pytest.mark.slow

FIGURES = (
    "asr_wer asr_wer_heldout_voice tts_wer tts_wer_bigram tts_wer_ceiling resynthesis_wer "
    "qa_text_accuracy qa_speech_accuracy wellformed_share pnmi wall_seconds peak_memory_mb"
).split()


def test_every_notebook_is_executed_without_an_error(smoke_run: Path, root: Path) -> None:
    names = [path.name for path in sorted((root / "notebooks").glob("*.ipynb"))]
    assert [name[:2] for name in names] == [f"{n:02d}" for n in range(11)]
    for name in names:
        notebook = nbformat.read(smoke_run / "notebooks" / name, as_version=4)
        outputs = [
            output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
        ]
        assert outputs and not [output for output in outputs if output.output_type == "error"], name
        assert (smoke_run / "notebooks" / name).stat().st_size < 1.5 * 2**20, name


def test_the_report_has_every_figure_with_its_interval(smoke_run: Path) -> None:
    report = json.loads((smoke_run / "report.json").read_text())
    for name in FIGURES:
        figure = report[name]
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] >= 1, name
    assert set(report["qa_by_kind"]) == {
        "sum",
        "capital",
        "opposite",
        "bigger",
        "color",
        "place",
        "owner",
    }
    assert report["wall_seconds"]["value"] == pytest.approx(
        sum(s["wall_seconds"] for s in report["steps"].values()), abs=0.2
    )
    assert "<audio" in (smoke_run / "report.html").read_text()


def test_a_second_run_reuses_everything(smoke_run: Path) -> None:
    started = time.monotonic()
    results = run_notebooks("smoke", smoke_run)
    assert len(results) == 11 and all(result.reused for result in results)
    assert time.monotonic() - started < 60


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
