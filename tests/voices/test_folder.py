"""Folders of recordings in the layouts that people have; one line for those without texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.errors import UserError
from speechgpt_lib.voices.folder import read_folder
from speechgpt_lib.voices.prompts import write_prompts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(2):
        write_audio(tmp_path / f"{k:04d}.wav", np.zeros(1600, np.float32))
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {spoken.path.name: spoken.text for spoken in read_folder(folder)}


BOTH = {"0000.wav": "one two", "0001.wav": "three four"}


def test_items(folder):
    lines = '{"path": "0000.wav", "text": "one two", "held_out": true}\n'
    (folder / "items.jsonl").write_text(lines)
    (spoken,) = read_folder(folder)
    assert (spoken.path.name, spoken.text, spoken.held_out) == ("0000.wav", "one two", True)


def test_a_text_beside_each(folder):
    (folder / "0000.txt").write_text("one\ntwo\n")
    (folder / "0001.txt").write_text("three four")
    assert texts(folder) == BOTH


def test_the_list_of_prompts(folder):
    write_prompts(folder / "list.txt", list(BOTH.values()))
    assert texts(folder) == BOTH


@pytest.mark.parametrize("line", ["{} {}", "{}|{}", "{}|as written|{}", "{}\t{}"])
def test_lists_as_others_write_them(folder, line):
    lines = [line.format(name.removesuffix(".wav"), text) for name, text in BOTH.items()]
    (folder / "metadata.csv").write_text("\n".join(lines))
    assert texts(folder) == BOTH


def test_without_texts_or_sounds(folder, tmp_path):
    with pytest.raises(UserError, match="no texts in .*only 2 sound files: add items.jsonl"):
        read_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no sound file in"):
        read_folder(tmp_path / "empty")
    with pytest.raises(UserError, match="no folder"):
        read_folder(tmp_path / "none")


def test_only_files_of_the_folder_are_read(folder):
    (folder / "items.jsonl").write_text('{"path": "../0000.wav", "text": "one"}\n')
    with pytest.raises(UserError, match="outside"):
        read_folder(folder)
