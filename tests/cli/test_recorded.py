"""A recorded corpus through the steps that `vocoder train`, `text-to-unit train` and `instruct
build` make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.units.sequence import parse_units
from speechgpt_lib.vocoder.synthesis import Vocoder

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
TTS = ("--set", "instructions.questions_from=tts", "--set", "instructions.answers_from=tts")


def metrics(done) -> dict:
    """What the only step of a `make --json` says of itself."""
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout).values()
    return found


@pytest.mark.slow
def test_a_corpus_gets_a_vocoder_and_a_text_to_unit_model(command, speech, tmp_path: Path):
    run, wav = tmp_path / "run", tmp_path / "x.wav"
    where = (*speech.recipe, "--run-dir", run, "--json")
    made = metrics(command("vocoder", "train", *where, "--set", "vocoder.all_voices=true"))
    assert made["generator"]["steps"] == 4
    vocoder = Vocoder.load(run / "02_unit_vocoder" / "vocoder")
    assert vocoder.speakers == ("3", "5"), "the voice that answers comes first"
    done = command("speak", "<sosp><1><2><eosp>", "--run", run, "-o", wav, "--speaker", "5")
    assert done.returncode == 0 and len(soundfile.read(wav)[0]) >= 640, done.stderr

    made = metrics(command("text-to-unit", "train", *where))
    assert made["held_out_unit_error_rate"] >= 0
    model = TextToUnit.load(run / "04_chain_of_modality_instructions" / "text_to_unit")
    done = command("text-to-unit", "generate", "Good day 7!", "good day", "--run", run)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(parse_units(line, 9).size for line in lines), done.stderr
    assert parse_units(lines[1], 9).tolist() == model.generate(["good day"])[0].tolist()
    again = command("make", "text_to_unit", *where)
    assert "reused   04_chain_of_modality_instructions/text_to_unit" in again.stderr
    done = command("text-to-unit", "generate", "犬", "--run", run)
    assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_a_cross_modal_set_of_a_corpus(command, speech, tmp_path: Path):
    run, release = tmp_path / "run", ("--set", "instructions.templates=release")
    shares = ("--set", "instructions.chain_shares={speech_speech: 1.0}")
    build = ("make", "cross_modal_set", *speech.recipe, *release, *shares)
    build = (*build, "--run-dir", run, "--json")
    part = command(*build, "--shards", "0:1")
    assert part.returncode == 0, part.stderr
    made = metrics(command(*build))
    folder = Path(made["folder"])
    assert made["rows"] == sum(made["tasks"].values()) > 0 and set(made["tasks"]) == {"asr", "tts"}
    card = (folder / "CARD.md").read_text()
    assert "CC BY 4.0" in card, "the licence of LibriSpeech"
    assert command("instruct", "stats", folder).stdout.strip() == card.strip()
    assert command("instruct", "check", folder, "--inventory", run).returncode == 0

    own = tmp_path / "descriptions"
    own.mkdir()
    (own / "asr.txt").write_text("Write it down.\n")
    (own / "tts.txt").write_text("Say it.\nThis is input: no\n")
    refused = command(*build, "--set", f"instructions.descriptions={own}")
    assert refused.returncode == 1 and "belong to the templates" in refused.stderr
    wrong = command(*build, "--set", "instructions.templates=mine")
    assert wrong.returncode == 1 and "'paper' or 'release'" in wrong.stderr


@pytest.mark.slow
def test_written_dialogues_are_voiced(command, speech, tmp_path: Path):
    (tmp_path / "moss.json").write_text(json.dumps(MOSS))
    dialogues = ("--set", f"instructions.dialogues={tmp_path / 'moss.json'}")
    more = ("--set", "instructions.classroom=true", "--run-dir", tmp_path / "run", "--json")
    build = ("make", "chain_set", *speech.recipe, *TTS, *dialogues, *more)
    made = metrics(command(*build))
    assert made["rows"] + made["held_out"] == 2
    folder = Path(made["folder"])
    card = (folder / "CARD.md").read_text()
    assert "CC BY-NC 4.0" in card and "eSpeak NG" in card and "## Selection" in card
    steps = {
        step["step"]: step
        for step in json.loads((folder / "summary.json").read_text())["selection"]
    }
    assert steps["kept"]["left"] == 2
    assert command("instruct", "check", folder).returncode == 0
    assert not (tmp_path / "run" / "04_chain_of_modality_instructions" / "text_to_unit").exists()


def test_the_published_text_to_unit_model(command, reference: Path, tmp_path: Path):
    files, out = reference / "fixtures" / "fairseq" / "text2unit", tmp_path / "m"
    given = (files / "text2unit.pt", files / "spm.model", "--inventory", "feed", "-o", out)
    dictionary = ("--dictionary", files / "binary" / "dict.unit.txt")
    done = command("text-to-unit", "import", *given, *dictionary, "--json")
    assert json.loads(done.stdout)["units"] == 50, done.stderr
    wanted = json.loads((files / "expected.json").read_text())["sentences"][2]
    done = command("text-to-unit", "generate", wanted["text"], "--text-to-unit", out, "--json")
    found = json.loads(done.stdout)["units"][0]
    assert " ".join(f"<{unit}>" for unit in found) == wanted["translate"]
    assert np.array(found).max() < 50
