"""`speechgpt voice`: from a folder of recordings to an adapted run and back, and bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.run import Run
from speechgpt_lib.voices.prompts import prompts, training_sentences
from speechgpt_lib.voices.stand_in import write_stand_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(smoke_run: Path, tmp_path_factory) -> Path:
    """A copy of the smoke run without voices."""
    copy = tmp_path_factory.mktemp("voice") / "smoke"
    shutil.copytree(smoke_run, copy, ignore=shutil.ignore_patterns("voices", "11*"))
    return copy


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory) -> Path:
    """Recordings of a stand-in with their texts."""
    folder = tmp_path_factory.mktemp("recordings")
    write_stand_in(folder, prompts(Run.open(run, lambda line: None), 4), load_recipe("smoke"))
    return folder


def error_of(done) -> str:
    """The one line of an error."""
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert done.returncode == 1 and line.startswith("error: ") and "Traceback" not in done.stderr
    return line


def test_prompts_are_training_sentences_with_many_words(run: Path) -> None:
    opened = Run.open(run, lambda line: None)
    few, more = prompts(opened, 5), prompts(opened, 20)
    known = training_sentences(opened)
    assert more[:5] == few and len(set(more)) == 20 and set(more) <= set(known)
    plain = {word for text in known[:20] for word in text.split()}
    assert len({word for text in more for word in text.split()}) > len(plain)


def test_from_recordings_to_an_adapted_run_and_back(run, folder, command, tmp_path) -> None:
    at = ("--run", run)
    refused = error_of(command("voice", "record", "zebulon", "--from", folder, *at))
    assert "nothing is recorded without consent" in refused
    done = command("voice", "record", "zebulon", "--from", folder, "--consent", *at)
    assert done.returncode == 0 and "kept 4, refused 0" in done.stdout, done.stderr
    assert "not yet adapted" in error_of(
        command("transcribe", folder / "0000.wav", "--voice", "zebulon", *at)
    )
    done = command("voice", "adapt", "zebulon", "--json", *at)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["sentences"], facts["kept_aside"]) == (3, 1)
    for key in ("voice_wer", "own_wer", "own_answers"):
        assert {f"{key}_before", f"{key}_after"} <= facts.keys()
    assert "adapted" in command("voice", "list", *at).stdout

    sound = ("ask", folder / "0000.wav", "--json", "-o", tmp_path / "a.wav", *at)
    plain, own = command(*sound), command(*sound, "--voice", "zebulon")
    assert plain.returncode == own.returncode == 0, own.stderr
    copy = tmp_path / "set"
    shutil.copytree(folder, copy)
    done = command("evaluate", "--set", copy, "--voice", "zebulon", "--json", *at)
    assert done.returncode == 0 and json.loads(done.stdout)["items"] == 4, done.stderr
    assert "--voice needs --set" in error_of(command("evaluate", "--voice", "zebulon", *at))

    recordings = sorted((run / "voices" / "zebulon").glob("*.wav"))
    contents = [path.read_bytes() for path in recordings]
    marks = [b"zebulon", *(data[2000:2200] for data in contents)]
    marks += [hashlib.sha256(data).hexdigest().encode() for data in contents]
    done = command("voice", "remove", "zebulon", *at)
    assert done.returncode == 0 and "nothing of it is left" in done.stdout, done.stderr
    for path in (p for p in run.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert not [mark for mark in marks if mark in content], path
    for words in (("voice", "remove"), ("voice", "adapt")):
        assert "never recorded, or removed" in error_of(command(*words, "zebulon", *at))
    removed = error_of(command(*sound, "--voice", "zebulon"))
    assert "no voice 'zebulon'" in removed


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda wave, other: 0 * wave, "nothing to hear"),
        (lambda wave, other: np.clip(30 * wave, -1, 1), "clipped"),
        (lambda wave, other: wave[:1500], "too short"),
        (lambda wave, other: other, "wrong sentence: heard"),
    ],
)
def test_a_bad_recording_is_one_line(spoil, said, run, folder, command, tmp_path) -> None:
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    wave, other = (read_audio(folder / item["path"]) for item in items[:2])
    write_audio(tmp_path / "a.wav", np.float32(spoil(wave, other)))
    (tmp_path / "a.txt").write_text(items[0]["text"])
    done = command("voice", "record", "bad", "--from", tmp_path, "--consent", "--run", run)
    line = error_of(done)
    assert "a.wav" in line and said in line
    assert not (run / "voices" / "bad" / "items.jsonl").exists()


def test_what_cannot_be_recorded_or_adapted(run, folder, command, tmp_path) -> None:
    at = ("--run", run)
    assert "a terminal has no microphone" in error_of(command("voice", "record", "me", *at))
    name = error_of(command("voice", "record", "../me", "--from", folder, "--consent", *at))
    assert "'../me' is no name for a voice" in name
    write_audio(tmp_path / "a.wav", np.zeros(16_000, np.float32))
    given = ("--from", tmp_path, "--consent")
    assert "no texts in" in error_of(command("voice", "record", "me", *given, *at))
    assert "no voice 'nobody'" in error_of(command("voice", "adapt", "nobody", *at))
    unfinished = tmp_path / "run"
    Run.create(unfinished, load_recipe("smoke"), lambda line: None)
    given = ("--from", folder, "--consent", "--run", unfinished)
    missing = error_of(command("voice", "record", "me", *given))
    assert "07_stage2_cross_modal_finetuning/model is missing" in missing
    assert not (unfinished / "voices").exists()
    prompts_file = tmp_path / "list.txt"
    done = command("voice", "record", "me", "--prompts", prompts_file, "-n", 3, *at)
    assert done.returncode == 0 and len(prompts_file.read_text().splitlines()) == 3


def test_without_a_judge_the_words_go_unchecked_and_it_says_so(run, folder, tmp_path, monkeypatch):
    from speechgpt_lib.corpora.lab import LabReader
    from speechgpt_lib.errors import UserError
    from speechgpt_lib.voices import checks
    from speechgpt_lib.voices.recording import Recorder
    from speechgpt_lib.voices.store import Voice

    def none(*given):
        raise UserError("the speech judge needs pocketsphinx, which is not installed")

    monkeypatch.setattr(LabReader, "judges", none)
    monkeypatch.setattr(checks, "open_judge", none)
    said: list[str] = []
    recorder = Recorder.open(Voice(Run.open(run), "unjudged"), True, said.append)
    assert recorder.add_folder(folder, said.append) == (4, 0)
    (note,) = said
    assert "is not checked: the speech judge needs pocketsphinx" in note
