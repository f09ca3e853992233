"""What `ask` takes for a recording and what for a question in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechgpt_lib.cli.talk import ask, names_a_file
from speechgpt_lib.errors import UserError


@pytest.mark.parametrize(
    "mistyped",
    [
        "question.wav",
        "question.wva",
        "question.WAVE",
        "question.webm",
        "my question.wav",
        "my question.fla",
        "recordings/question",
        "./question",
        "../question",
        "~/question.wav",
        "/tmp/a folder/question",
        "C:\\Users\\me\\question.wav",
        " question.mp3 ",
    ],
)
def test_a_mistyped_path_is_no_question_in_words(mistyped: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_a_file(mistyped)
    with pytest.raises(UserError, match="no audio file is there"):
        ask(mistyped, run=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "what is two plus three",
        "where is anna?",
        "hello",
        "what is 1/2 of six",
        "who is mr. smith",
        "what is 3 plus 0.25",
        "is he and/or she in the house",
        "at 5 p.m.",
        "stop.",
        "what comes after a, b, c ...",
        "",
    ],
)
def test_words_are_words(words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not names_a_file(words)


def test_a_file_that_is_there_needs_no_suffix(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "what is it").touch()
    assert names_a_file("what is it")
