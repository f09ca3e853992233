"""Who reads where nobody does: the natural voice where he is, else eSpeak's, never the answerer."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.voices import stand_in
from speechgpt_lib.voices.folder import read_folder
from speechgpt_lib.voices.stand_in import stand_in_voice, write_stand_in


@pytest.mark.parametrize(
    "installed, target, expected",
    [(True, "Female2", "joe"), (True, "joe", "Male2"), (False, "Female2", "Male2")],
)
def test_it_is_a_voice_that_the_run_never_heard(monkeypatch, installed, target, expected) -> None:
    monkeypatch.setattr(stand_in, "is_installed", lambda: installed)
    recipe = load_recipe("smoke", {"corpora.0.target_voice": target})
    assert stand_in_voice(recipe) == expected


def test_without_the_natural_voice_espeak_reads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stand_in, "is_installed", lambda: False)
    texts = ["the dog is red", "anna has the lion"]
    assert write_stand_in(tmp_path, texts, load_recipe("smoke")) == "eSpeak's Male2, changed"
    assert [recording.text for recording in read_folder(tmp_path)] == texts
