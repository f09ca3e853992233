"""A voice's folder: consent first, names that are no paths, recordings, and removal to the last
trace."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import hash_file
from speechgpt_lib.runs.run import Run
from speechgpt_lib.voices.removal import NOTEBOOK, check_name, finder, remove
from speechgpt_lib.voices.store import Voice, names, overview
from tests.builders import noise, smoke_recipe

FACTS = {"seconds": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", smoke_recipe(), lambda line: None)


@pytest.fixture
def voice(run: Run) -> Voice:
    voice = Voice(run, "veronika")
    voice.agree(True)
    for k in range(3):
        voice.keep(f"sentence {k}", noise(1.0, k), FACTS)
    return voice


@pytest.mark.parametrize(
    "name", ["", "../me", "a/b", "/tmp/me", ".", "a b", "-x", "ü" * 3, "x" * 41]
)
def test_a_name_that_is_a_path_or_none_is_refused(run, name):
    with pytest.raises(UserError, match="is no name for a voice"):
        Voice(run, name)


def test_nothing_is_kept_without_consent(run):
    voice = Voice(run, "me")
    with pytest.raises(UserError, match="nothing is recorded without consent"):
        voice.agree(False)
    with pytest.raises(UserError, match="without consent"):
        voice.keep("one", noise(0.5), FACTS)
    assert not voice.path.exists()
    voice.agree(True)
    text = json.loads((voice.path / "consent.json").read_text())["text"]
    assert "voice remove" in text and voice.has_consent()


def test_recordings_come_back_and_one_of_the_same_text_replaces_the_old(voice):
    voice.keep("sentence 1", noise(0.5, 9), FACTS)
    found = voice.recordings()
    assert [r.text for r in found] == ["sentence 0", "sentence 2", "sentence 1"] or [
        r.text for r in found
    ] == [f"sentence {k}" for k in range(3)]
    wave = next(r.wave for r in found if r.text == "sentence 1")
    assert np.abs(wave - noise(0.5, 9)).max() < 1e-4
    assert len({r.path for r in found}) == 3
    assert [(v.name, v.recordings, v.state) for v in overview(voice.run)] == [
        ("veronika", 3, "recorded")
    ]


def test_unknown_or_removed_or_too_few(run, voice):
    with pytest.raises(UserError, match=r"no voice 'anna' in .*\(there: veronika\)"):
        Voice(run, "anna").recordings()
    anna = Voice(run, "anna")
    anna.agree(True)
    anna.keep("one", noise(0.5), FACTS)
    with pytest.raises(UserError, match="has 1 recordings, at least 2"):
        anna.recordings()
    remove(voice)
    with pytest.raises(UserError, match="never recorded, or removed"):
        voice.recordings()


def test_removal_leaves_nothing_in_any_file_and_all_else_as_it_was(run, voice):
    other = Voice(run, "otto")
    other.agree(True)
    other.keep("mine", noise(1.0, 7), FACTS)
    sound = voice.path / "0001.wav"
    data, digest = sound.read_bytes(), hash_file(sound)
    (voice.model / "stage2").mkdir(parents=True)
    (voice.model / "stage2" / "model.safetensors").write_bytes(b"weights")
    notebooks = run.path / "notebooks"
    media = notebooks / "media" / "11"
    media.mkdir(parents=True)
    copy = notebooks / f"{NOTEBOOK}.ipynb"
    copy.write_text(f'{{"out": "{base64.b64encode(b"RIFF" + data[5:]).decode()}"}}')
    (notebooks / f"{NOTEBOOK}.json").write_text('{"key": "k"}')
    (media / "curve.png").write_bytes(b"a picture of veronika")
    (run.path / "set").mkdir()
    (run.path / "set" / "report.json").write_text('{"voice": "veronika"}')
    (run.path / "cache.bin").write_bytes(b"\0" * 5_000_000 + data[20:] + b"\0" * 100)
    (run.path / "hashes.json").write_text(json.dumps({"sha256": digest}))
    log = run.path / "steps.log"
    log.write_text("made a\nadapted voices/veronika\nmade b\n")
    kept = notebooks / "09_talk_to_speechgpt.ipynb"
    kept.write_text("{}")
    before = hash_file(other.path / "0000.wav")

    remove(voice)

    files = [path for path in run.path.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        assert b"veronika" not in content and digest.encode() not in content, path
        assert data[4000:4100] not in content and "veronika" not in str(path.relative_to(run.path))
        assert base64.b64encode(data[4002:4100])[4:-8] not in content
    assert log.read_text() == "made a\nmade b\n"
    assert kept.is_file() and not copy.exists() and not media.exists()
    assert hash_file(other.path / "0000.wav") == before and names(run) == ["otto"]


def test_a_name_that_is_a_word_of_the_world_takes_no_corpus_with_it(run):
    anna = Voice(run, "anna")
    anna.agree(True)
    anna.keep("anna is in the house", noise(0.5), FACTS)
    corpus = run.path / "01_unit_extraction" / "corpus" / "texts.txt"
    corpus.parent.mkdir(parents=True)
    corpus.write_text("anna is in the house")
    assert remove(anna) == [] and corpus.is_file()
    assert not (run.path / "voices").exists()


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("elephant", "01_unit_extraction/corpus/texts.txt", "the elephant is in the house"),
        ("encoder", "01_unit_extraction/inventory/encoder/model.safetensors", "weights"),
        ("Linda", "09_talk_to_speechgpt/evaluation/examples.json", '{"voice": "Linda"}'),
    ],
)
def test_a_name_that_stands_in_the_run_is_no_name_for_a_voice(run, name, file, content):
    (run.path / file).parent.mkdir(parents=True)
    (run.path / file).write_text(content)
    with pytest.raises(UserError, match=f"'{name}' already stands in .*: choose another name"):
        check_name(Voice(run, name))
    check_name(Voice(run, name[:3]))
    known = Voice(run, name[::-1])
    check_name(known)
    known.agree(True)
    (run.path / "log").write_text(known.name)  # what came after it
    check_name(known)


def test_the_executed_notebook_of_voices_takes_no_name(run):
    copy = run.path / "notebooks" / f"{NOTEBOOK}.ipynb"
    (run.path / "notebooks" / "media" / NOTEBOOK[:2]).mkdir(parents=True)
    copy.write_text("a stand-in speaks")
    check_name(Voice(run, "stand-in"))


def test_the_finder_finds_what_a_plain_search_finds():
    rng = np.random.default_rng(0)
    for alphabet in (2, 256):  # with two letters marks overlap and share their starts
        marks = [rng.integers(0, alphabet, n, np.uint8).tobytes() for n in (4, 5, 7, 12, 40)]
        holds = finder(marks)
        for size in (0, 3, 4, 30, 4000):
            for _ in range(40):
                block = rng.integers(0, alphabet, size, np.uint8).tobytes()
                assert holds(block) == any(mark in block for mark in marks)
        for mark in marks:
            assert holds(mark) and holds(b"x" * 99 + mark) and holds(mark + b"x")
            assert not finder([mark])(mark[:-1])
    assert not finder([])(b"anything")


def test_a_voice_s_removal_leaves_the_longer_name_its_own(run):
    anna, second = Voice(run, "veronika"), Voice(run, "veronika-2")
    for k, voice in enumerate((anna, second)):
        voice.agree(True)
        voice.keep("one", noise(0.5, k), FACTS)
    log = run.path / "steps.log"
    log.write_text("ask --voice veronika-2\nask --voice veronika\n")
    remove(anna)
    assert log.read_text() == "ask --voice veronika-2\n"
    assert names(run) == ["veronika-2"] and second.records()
    assert (second.path / "0000.wav").is_file() and second.has_consent()


def test_an_interrupted_removal_begins_again(run, voice, monkeypatch):
    (run.path / "cache.bin").write_bytes((voice.path / "0000.wav").read_bytes())

    def stop(self, missing_ok=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", stop)
        remove(voice)
    assert voice.records(), "what tells its traces is still there"
    remove(voice)
    assert not (run.path / "cache.bin").exists() and not voice.path.exists()
