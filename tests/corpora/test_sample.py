"""Fresh test sets: held out, repeatable, and of the kind asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechgpt_lib.corpora import lab, world
from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.corpora.lab import KINDS, plan_corpus, sample_set, speak
from speechgpt_lib.errors import UserError
from tests.builders import smoke_recipe

RECIPE = smoke_recipe()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech without a process of its own: quicker, and as good for everything but the last bit of
    the samples."""
    monkeypatch.setattr(lab, "speak_all", lambda rows: [speak(row) for row in rows])


def test_a_set_is_held_out_and_of_all_kinds(tmp_path: Path, in_this_process: None) -> None:
    records = sample_set(tmp_path, 2 * len(KINDS), 3, RECIPE)
    assert [
        json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()
    ] == records
    assert len({r["text"] for r in records}) == len(records)
    assert all(world.is_held_out(r["text"]) and r["held_out"] and not r["seen"] for r in records)
    assert [r["kind"] for r in records] == list(KINDS) * 2
    assert all(bool(r["answer"]) == (r["kind"] != "statement") for r in records)
    assert {r["voice"] for r in records} == {RECIPE.corpora[0].target_voice}
    for record in records:
        assert len(read_audio(tmp_path / record["path"])) > 8000


def test_a_set_is_a_function_of_its_seed(tmp_path: Path, in_this_process: None) -> None:
    first, again, other = (
        sample_set(tmp_path / name, 3, seed, RECIPE)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again != other


@pytest.mark.slow
def test_even_its_samples_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sample_set(tmp_path / name, 2, 3, RECIPE, voice="Male2")
    for file in ("0000.wav", "0001.wav"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_sentences_that_training_saw_are_marked(tmp_path: Path, in_this_process: None) -> None:
    records = sample_set(tmp_path, 12, 0, RECIPE, kind="capital", held_out=False)
    trained = {u.text for u in plan_corpus(RECIPE.corpora[0], RECIPE.seed) if u.split == "train"}
    assert {r["kind"] for r in records} == {"capital"}
    assert [r["seen"] for r in records] == [r["text"] in trained for r in records]
    assert not any(r["seen"] and r["held_out"] for r in records)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"voice": "Nobody"}, "unknown voice 'Nobody'.*Female1"),
        ({"kind": "riddle"}, "unknown kind 'riddle'.*statement"),
        ({"count": 0}, "asked for 0"),
        pytest.param(
            {"count": 5000, "kind": "capital"},
            r"only \d+ held-out sentences of kind capital, 5000 were asked for",
            marks=pytest.mark.slow,  # it looks for all there are
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        sample_set(tmp_path / "d", **({"count": 1, "seed": 0, "recipe": RECIPE} | arguments))
    assert not (tmp_path / "d").exists()
