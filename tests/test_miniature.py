"""`release` and `small` on a miniature of what they read: published weights answer aloud, and all
notebooks train the stages for a few steps on real speech; a second run reuses everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import soundfile

from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
from tests.miniature import ANSWER, PIECES, QUESTION, SPOKEN, UNITS, asked, build_miniature

pytestmark = pytest.mark.slow

FEW = {"steps": 3, "warmup": 1, "log_every": 1}
TINY = {"pieces": 300, "hidden_size": 32, "layers": 1, "heads": 2, "feed_forward": 64, "beams": 1}
LITTLE = {
    "device": "cpu",
    "processes": 1,
    "generation": {"transcript": 8, "speech": 30, "spoken_answer": 60, "written_answer": 20},
    "text_to_unit": TINY
    | {"tokens_per_batch": 2000, "optimization": FEW | {"learning_rate": 1e-3}},
    "instructions.written_dialogues": 0,
    "evaluation": {
        "asr_utterances": 2,
        "tts_sentences": 2,
        "resynthesis_utterances": 2,
        "vocoder_utterances": 2,
        "voicing_sentences": 2,
        "stage1_utterances": 4,
        "stage_utterances": 2,
        "bootstrap_draws": 50,
    },
}
ALL = "00,01,02,03,04,05,06,07,08,09,10"
CORPORA = [  # as it stands, release learns nothing and needs none
    {"reader": "librispeech", "root": "LibriSpeech", "splits": ["train-clean-100"]},
    {"reader": "librispeech", "root": "LibriSpeech", "splits": ["dev-clean"], "role": "test"},
]
for stage in ("stage1", "stage2", "stage3"):
    LITTLE |= {f"{stage}.optimization.{name}": value for name, value in FEW.items()}
    LITTLE |= {f"{stage}.tokens_per_batch": 2048}


@pytest.fixture(scope="module")
def data(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    speech = reference / "speech" / "LibriSpeech"
    if not speech.is_dir():
        pytest.skip(f"no LibriSpeech in {reference / 'speech'}")
    return build_miniature(tmp_path_factory.mktemp("miniature") / "data", speech)


def speechgpt(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "speechgpt_lib.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


def twice(command, recipe: str, run: Path, changes: dict, *words: str) -> Run:
    """The run that a command made of a recipe; and once more, when all is reused."""
    sets = [w for key, value in changes.items() for w in ("--set", f"{key}={json.dumps(value)}")]
    words = (*words, "--recipe", recipe, "--run-dir", run, *sets)
    speechgpt(*words)
    again = command(*words)
    told = again.stdout + again.stderr
    assert again.returncode == 0, told
    assert "making" not in told and "executing" not in told and "reused" in told
    return Run.open(run, say=lambda line: None)


def copies(run: Run) -> list[str]:
    """The numbers of the notebooks that were executed."""
    return [path.stem[:2] for path in sorted((run.path / "notebooks").glob("*.ipynb"))]


def printed(notebook: Path) -> str:
    """All that the cells of an executed notebook printed."""
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_published_weights_answer_aloud(data: Path, command, tmp_path: Path) -> None:
    changes = {"data": str(data), **LITTLE}
    steps = ("inventory", "vocoder", "stage2", "stage3")
    run = twice(command, "release", tmp_path / "run", changes, "make", *steps)
    assert run.require("stage2").metrics["vocabulary"] == PIECES + UNITS + 6
    adapters = 2 * 8 * (48 + 48) + 2 * 8 * (48 + 24)  # in 2 layers: queries; values of fewer heads
    assert run.require("stage3").metrics["trainable_parameters"] == adapters
    assert run.recipe.inference.weights == "bf16"
    assert not run.find("text_model") and not run.find("corpus"), "what isn't needed isn't read"
    out = tmp_path / "answer.wav"
    told = json.loads(command("ask", asked(data), "--run", run.path, "-o", out, "--json").stdout)
    assert (told["question_text"], told["answer_text"]) == (QUESTION, ANSWER)
    assert told["answer_units"] == SPOKEN and told["wellformed"] and not told["cut"]
    words = ("ask", QUESTION, "--run", run.path, "-o", tmp_path / "second.wav", "--json")
    written = json.loads(command(*words).stdout)
    assert isinstance(written["answer_text"], str)
    wave, rate = soundfile.read(out)
    assert rate == 16_000 and len(wave) >= 320 * len(SPOKEN) and abs(wave).max() > 0


def test_release_is_trained_in_the_notebooks(data: Path, command, tmp_path: Path) -> None:
    """From the released JSONL and LLaMA's weights, with units and vocoder as published.  Notebooks
    00 to 02 show no more than with `small`: both have the same units and vocoder."""
    shown = ALL.split(",")[3:]
    changes = {"data": str(data), **LITTLE, "imports.any_size": True, "corpora": CORPORA}
    changes |= {"imports.stage2": None, "imports.stage3": None}
    changes["evaluation.open_judge"] = "none"
    run = twice(command, "release", tmp_path / "run", changes, "run", "--only", ",".join(shown))
    assert copies(run) == shown
    for name in ("cross_modal_set", "chain_set"):
        facts = run.require(name).metrics
        assert (facts["rows"], sum(facts["quarantined"].values())) == (24, 1)
    model, vocabulary = load_model(run.require("stage2").path)
    assert (vocabulary.size, model.config.vocab_size) == (PIECES + UNITS + 6,) * 2
    assert (run.path / "report.json").is_file()


def test_small_is_trained_in_the_notebooks(data: Path, command, tmp_path: Path) -> None:
    changes = {"data": str(data), **LITTLE}
    run = twice(command, "small", tmp_path / "run", changes, "run", "--only", ALL)
    assert copies(run) == ALL.split(",") and not run.find("hubert")
    said = "\n".join(map(printed, sorted((run.path / "notebooks").glob("*.ipynb"))))
    for reason in ("no phones", "without answers", "no questions with answers", "no synthesiser"):
        assert reason in said
    for imported in ("no hubert is made", "vocoder was imported", "text_model was imported"):
        assert imported in said
    assert run.require("stage3").metrics["steps"] == 3
    corpus = run.require("corpus").metrics
    assert corpus["utterances"] > 30 and len(corpus["voices"]) > 5
    model, vocabulary = load_model(run.require("stage2").path)
    assert vocabulary.unit_count == UNITS and model.config.tie_word_embeddings
    assert model.config.vocab_size % load_recipe("small").language_model.multiple == 0
    assert run.require("stage1").metrics["unit_perplexity"] > 1
    told = json.loads(command("transcribe", asked(data), "--run", run.path, "--json").stdout)
    assert isinstance(told["text"], str)
    said = ("say", "the house is in the field", "-o", tmp_path / "said.wav")
    assert command(*said, "--run", run.path).returncode == 0
    assert soundfile.info(tmp_path / "said.wav").samplerate == 16_000
