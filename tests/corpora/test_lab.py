"""The plan of the lab corpus is a pure function; building it survives interruption."""

from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora import lab, world
from speechgpt_lib.corpora.lab import (
    LabReader,
    all_answers,
    plan_corpus,
    run_in_processes,
    speak,
    speak_all,
    voices_of_many,
)
from speechgpt_lib.corpora.speech import PLAIN, synthesize
from speechgpt_lib.corpora.tables import Utterance, read_utterances, table_shards
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.sources import LabCorpus

MANY = load_recipe("smoke").corpora[0]
SETTINGS = MANY.model_copy(update={"many_statements": 0, "many_questions": 0})


@pytest.fixture(scope="module")
def plan() -> list[Utterance]:
    return plan_corpus(SETTINGS, 5)


def test_the_plan_is_repeatable(plan: list[Utterance]) -> None:
    assert plan == plan_corpus(SETTINGS, 5) != plan_corpus(SETTINGS, 6)
    assert [row.id for row in plan] == [f"{k:06d}" for k in range(len(plan))]


def test_every_voice_has_its_role(plan: list[Utterance]) -> None:
    splits = collections.defaultdict(set)
    for row in plan:
        splits[row.voice].add(row.split)
    assert splits.pop(SETTINGS.held_out_voice) == {"test_voice"}
    assert splits.pop(SETTINGS.target_voice) == {"train", "test"}
    assert all(splits.pop(voice) == {"train", "test"} for voice in SETTINGS.aligned_voices)
    assert all(splits.pop(voice) == {"unlabelled"} for voice in SETTINGS.unlabelled_voices)
    assert not splits


def test_counts_are_those_of_the_recipe(plan: list[Utterance]) -> None:
    def count(**values: str) -> int:
        return sum(
            all(getattr(row, name) == value for name, value in values.items()) for row in plan
        )

    target, aligned = (
        {"voice": SETTINGS.target_voice, "split": "train"},
        {"voice": SETTINGS.aligned_voices[0], "split": "train"},
    )
    assert count(**target, kind="statement") == SETTINGS.target_statements
    assert (
        count(**target) - count(**target, kind="answer")
        == SETTINGS.target_statements + SETTINGS.target_questions
    )
    assert count(**aligned) == SETTINGS.aligned_statements + SETTINGS.aligned_questions
    assert count(split="unlabelled") == SETTINGS.unlabelled_sentences
    assert count(split="test_voice") == SETTINGS.test_sentences
    kinds = collections.Counter(
        row.kind for row in plan if row.voice == SETTINGS.target_voice and row.split == "train"
    )
    assert [kinds[kind] for kind in world.KINDS] == [
        SETTINGS.target_questions // len(world.KINDS)
    ] * len(world.KINDS)


def test_train_and_test_share_no_sentence_whatever_the_seed(plan: list[Utterance]) -> None:
    both = plan + plan_corpus(SETTINGS, 1)
    trained = {r.text for r in both if r.split in ("train", "unlabelled") and r.kind != "answer"}
    test = {r.text for r in both if r.split.startswith("test")}
    assert test and trained and not trained & test
    assert all(world.is_held_out(text) for text in test) and not any(
        map(world.is_held_out, trained)
    )


def test_the_target_voice_speaks_every_answer(plan: list[Utterance]) -> None:
    answers = [row for row in plan if row.kind == "answer"]
    assert [row.text for row in answers] == all_answers() and {row.voice for row in answers} == {
        SETTINGS.target_voice
    }
    assert {row.answer for row in plan if row.answer} <= set(all_answers())


def test_many_speakers_come_on_top_of_the_plan(plan: list[Utterance]) -> None:
    more = plan_corpus(MANY, 5)
    assert more == plan_corpus(MANY, 5) and more[: len(plan)] == plan
    others = more[len(plan) :]
    assert len(others) == MANY.many_statements + MANY.many_questions
    assert {u.split for u in others} == {"train"} and not any(
        world.is_held_out(u.text) for u in others
    )
    assert len({u.manner.seed for u in others}) == len(others)
    assert len({u.voice for u in others}) > 6 and len({u.manner.accent for u in others}) > 2
    assert {u.voice for u in others} <= set(voices_of_many(MANY))
    assert not {u.voice for u in plan} & set(voices_of_many(MANY)), "each has one role"
    assert all(u.manner == PLAIN for u in plan)


def test_a_speaker_of_its_own_is_heard_and_its_phones_stay_aligned(monkeypatch) -> None:
    u = next(u for u in plan_corpus(MANY, 5) if u.manner != PLAIN)
    spoken = synthesize(u.text, u.voice, u.rate, u.pitch, u.manner)  # once: eSpeak has a memory
    monkeypatch.setattr(lab, "synthesize", lambda *how: spoken)
    clean, made = (speak(replace(u, manner=u.manner._replace(seed=s))) for s in (None, 1))
    assert len(clean.wave) == len(made.wave) and len(made.wave) % lab.LENGTH_STEP == 0
    assert clean.phones == made.phones and not np.allclose(clean.wave, made.wave, atol=0.01)
    assert np.abs(made.wave).max() == pytest.approx(0.7)  # 16 bits hold it
    before, after = u.manner.silence
    first, last = clean.phones[0].start, clean.phones[-1].end
    assert first == pytest.approx(before, abs=0.001) and last + after <= clean.seconds + 0.001
    loud = np.flatnonzero(np.abs(clean.wave) > 0.02) / 16_000
    assert first - 0.02 < loud[0] < first + 0.2


@pytest.mark.slow
def test_the_target_voice_repeats_what_many_speakers_said() -> None:
    varied = [u for u in plan_corpus(MANY, 5) if u.manner != PLAIN][:3]
    spoken = speak_all(varied)  # as the table has them: without their manner
    plan = LabReader(MANY).in_target_voice([replace(u, manner=PLAIN) for u in spoken], 5)
    again = speak_all(plan)
    for one, other in zip(spoken, again, strict=True):
        assert (one.id, one.text) == (other.id, other.text)
        assert other.voice == MANY.target_voice
        assert [p.label for p in one.phones] == [p.label for p in other.phones]


@pytest.mark.slow
def test_an_interrupted_corpus_keeps_its_shards_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "all_answers", lambda: ["two plus two is four", "robert has the dog"])
    settings = LabCorpus(
        target_voice="Female2", target_statements=2, test_sentences=2, held_out_voice="Male2"
    )
    reader = LabReader(settings)
    shards = reader.build(tmp_path / "whole", 0, processes=1, size=5)
    assert shards == table_shards(tmp_path / "whole")
    spoken = list(read_utterances(tmp_path / "whole", audio=True))
    assert [(u.voice, u.split) for u in spoken] == [
        *[("Female2", "train")] * 4,
        *[("Female2", "test")] * 2,
        *[("Male2", "test_voice")] * 2,
    ]
    assert all(u.seconds == pytest.approx(len(u.read()) / 16_000) for u in spoken)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    assert len(whole) == 2

    kept = tmp_path / "part" / "utterances-00000.parquet"
    kept.parent.mkdir()
    kept.write_bytes(whole[kept.name])
    stamp = kept.stat().st_mtime_ns
    reader.build(tmp_path / "part", 0, processes=1, size=5)
    assert {
        p.name: p.read_bytes() for p in (tmp_path / "part").iterdir()
    } == whole and kept.stat().st_mtime_ns == stamp


def test_waves_end_in_silence_up_to_a_fifth_of_a_second(plan: list[Utterance]) -> None:
    for row in plan[:3]:
        spoken = speak(row)
        assert len(spoken.wave) % 3200 == 0 and spoken.seconds == len(spoken.wave) / 16_000
        assert (spoken.id, spoken.text, spoken.voice) == (row.id, row.text, row.voice)


@pytest.mark.slow
def test_jobs_in_other_processes_come_back_in_order() -> None:
    assert (
        list(run_in_processes(abs, [-3, 1, -2], processes=2))
        == [3, 1, 2]
        == list(run_in_processes(abs, [-3, 1, -2], processes=1))
    )
