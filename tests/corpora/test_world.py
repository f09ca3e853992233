"""The lab world is large enough, its answers are right, and its split is clean."""

from __future__ import annotations

import random
import re

import pytest

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.lab import all_answers, plan_corpus
from speechgpt_lib.recipes.schema import load_recipe

NUMBER = {word: k for k, word in enumerate(world.SLOTS["number"])}


def test_the_world_is_no_smaller_than_promised() -> None:
    rng = random.Random(0)
    questions = {world.sample_question(rng).text for _ in range(150_000)}
    assert len(world.vocabulary()) >= 100 and len(questions) >= 10_000
    assert len(world.KINDS) >= 6 and len(world.CONTEXT_KINDS) >= 2


@pytest.mark.parametrize("kind", world.KINDS)
def test_answers_are_right(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        q = world.sample_question(rng, kind)
        words, answer = q.text.split(), q.answer.split()
        if kind == "sum":
            a, b = words[-3], words[-1]
            assert q.answer == f"{a} plus {b} is {world.SLOTS['number'][NUMBER[a] + NUMBER[b]]}"
        elif kind == "bigger":
            a, b = NUMBER[words[-3]], NUMBER[words[-1]]
            assert (NUMBER[answer[0]], NUMBER[answer[-1]]) == (max(a, b), min(a, b)) and a != b
        elif kind == "capital":
            assert answer[-1] == dict(zip(world.SLOTS["country"], world.SLOTS["capital"], strict=True))[words[-1]]
        elif kind == "opposite":
            assert world.OPPOSITE[world.OPPOSITE[words[-1]]] == words[-1] and answer[-1] == world.OPPOSITE[words[-1]]
        else:  # the answer is one of the two facts, and the one about what was asked for
            assert q.text.count(q.answer) == 1 and words[-1] in answer
            assert len(re.findall(r"\band\b", q.text)) == 1


def test_the_split_depends_on_the_sentence_alone() -> None:
    plan = plan_corpus(load_recipe("smoke").corpus, 0)
    other = plan_corpus(load_recipe("smoke").corpus, 1)
    train = {r["text"] for r in plan + other if r["split"] in ("train", "unlabelled") and r["kind"] != "answer"}
    test = {r["text"] for r in plan + other if r["split"].startswith("test")}
    assert test and not train & test
    assert all(world.is_held_out(text) for text in test)


def test_the_plan_is_repeatable_and_keeps_the_held_out_voice_apart() -> None:
    settings = load_recipe("smoke").corpus
    assert plan_corpus(settings, 5) == plan_corpus(settings, 5) != plan_corpus(settings, 6)
    for row in plan_corpus(settings, 5):
        assert (row["voice"] == settings.held_out_voice) == (row["split"] == "test_voice")
    answers = [r for r in plan_corpus(settings, 5) if r["kind"] == "answer"]
    assert {r["text"] for r in answers} == set(all_answers()) and {r["voice"] for r in answers} == {settings.target_voice}


def test_unknown_words_and_kinds() -> None:
    assert world.unknown_words("The quokka is RED, isn't it?") == ["quokka", "isn't", "it"]
    assert world.normalise("  Hello,  WORLD! ") == "hello world"
    with pytest.raises(ValueError, match="unknown kind"):
        world.sample_question(random.Random(0), "riddle")
