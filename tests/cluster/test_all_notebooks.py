"""All notebooks with the smallest recipe, as jobs of a Slurm of two nodes: the results of a machine
alone, what the notebooks leave behind, what a second run reuses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import nbformat
import pytest

from speechgpt_lib.notebook.runner import run_notebooks
from speechgpt_lib.runs.run import Run
from tests.cluster.slurm_lab import SlurmLab, missing, written_site
from tests.cluster.test_on_slurm import hashes, quiet

pytestmark = pytest.mark.slow

FIGURES = (
    "asr_wer asr_wer_heldout_voice tts_wer tts_wer_bigram tts_wer_ceiling resynthesis_wer "
    "qa_text_accuracy qa_speech_accuracy wellformed_share wellformed_share_temperature_0.7 "
    "pnmi wall_seconds peak_memory_mb"
).split()


@pytest.fixture(scope="module")
def executed(request: pytest.FixtureRequest, tmp_path_factory, root: Path, speechgpt) -> Path:
    """A run directory in which `smoke` executed every notebook: on Slurm, or in processes of this
    machine alone where there is none."""
    folder = tmp_path_factory.mktemp("course")
    words = ("run", "--recipe", "smoke", "--run-dir", folder / "run")
    if missing() and "slurm" not in os.environ.get("SPEECHGPT_REQUIRE", ""):
        done = speechgpt(*words, timeout=1500)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    else:
        lab = request.getfixturevalue("slurm_lab")
        site = written_site(folder, root, tasks=1)  # arrays have tests of their own
        words += ("--on", "slurm", "--site", site, "--json")
        with pytest.MonkeyPatch.context() as patch:
            lab.lead_here(patch)
            execute_on(lab, words, speechgpt)
    return folder / "run"


def execute_on(lab: SlurmLab, words: tuple, speechgpt) -> None:
    """Submit everything and wait until it is finished."""
    first = json.loads(speechgpt(*words).stdout)
    assert len(first["submitted"]) > 25 and not first["queued"]
    again = json.loads(speechgpt(*words).stdout)
    assert not again["submitted"], "what waits in the queue is not submitted twice"
    lab.wait_until_empty(1500)
    told = speechgpt("status", words[words.index("--run-dir") + 1], "--json").stdout
    assert {job["name"]: job["state"] for job in json.loads(told)} == dict.fromkeys(
        first["submitted"], "done"
    ), told
    nothing = speechgpt(*words[:-1]).stdout
    assert "all of it is finished" in nothing


def test_all_notebooks_on_two_nodes_make_what_one_machine_makes(executed, smoke_run) -> None:
    local, here = (Run.open(path, say=quiet) for path in (smoke_run, executed))
    assert hashes(here) == hashes(local)


def test_every_notebook_is_executed_without_an_error(executed: Path, root: Path) -> None:
    names = [path.name for path in sorted((root / "notebooks").glob("*.ipynb"))]
    assert [name[:2] for name in names] == [f"{n:02d}" for n in range(12)]
    for name in names:
        notebook = nbformat.read(executed / "notebooks" / name, as_version=4)
        outputs = [
            output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
        ]
        assert outputs and not [output for output in outputs if output.output_type == "error"], name
        assert (executed / "notebooks" / name).stat().st_size < 1.5 * 2**20, name


def test_the_report_has_every_figure_with_its_interval(executed: Path) -> None:
    report = json.loads((executed / "report.json").read_text())
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
    assert "<audio" in (executed / "report.html").read_text()


def test_a_second_run_reuses_everything(executed: Path) -> None:
    started = time.monotonic()
    results = run_notebooks("smoke", executed)
    assert len(results) == 12 and all(result.reused for result in results)
    assert time.monotonic() - started < 60
