"""The curve of error over sentences: what is known is not measured again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.voices import adaptation


class Person(SimpleNamespace):
    """A voice of eight recordings, of a run whose stage 2 has a key."""

    def __init__(self, folder: Path):
        stage2 = SimpleNamespace(key="k")
        run = SimpleNamespace(recipe=load_recipe("smoke"), require=lambda name: stage2)
        super().__init__(path=folder, run=run)

    def require(self) -> Person:
        return self

    def records(self) -> list[dict]:
        return [{"text": str(k)} for k in range(8)]

    def recordings(self) -> list[int]:
        return [*range(8)]


def test_the_run_as_it_is_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, person = [], Person(tmp_path)
    most = len(adaptation.split(person.recordings(), person.run)[0])

    def adapt(voice, say, sentences=None, measured=None) -> dict:
        asked.append((sentences, measured and measured["voice_wer_before"]))
        before = measured["voice_wer_before"] if measured else "as it was"
        return {"sentences": sentences or most, "voice_wer_before": before, "voice_wer_after": 0}

    monkeypatch.setattr(adaptation, "adapt", adapt)
    points = adaptation.curve(person, (2, 4, 40), say=print)
    assert asked == [(2, None), (4, "as it was"), (None, "as it was")]
    assert [point["sentences"] for point in points] == [2, 4, most]
    assert {point["voice_wer_before"] for point in points} == {"as it was"}
    assert adaptation.curve(person, (2, 4, 40), say=print) == points
    assert len(asked) == 3, "kept points are not made again"
