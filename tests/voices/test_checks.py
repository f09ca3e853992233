"""What spoils a recording is found and said in one line; a good one passes."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.lab import speak_all
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.voices.checks import check_recording, sentence_judge

TEXT = "the big dog is in the house"


class Ears:
    """A judge that hears one thing."""

    def __init__(self, heard: str):
        self.heard = heard

    def transcribe(self, wave: np.ndarray) -> str:
        return self.heard


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    rng = np.random.default_rng(0)
    said = Utterance("", TEXT, "", "", "Male1", "", rate=175)
    # In a process of its own: eSpeak carries a little over from what was said before.
    spoken = np.pad(speak_all([said])[0].wave, 4000)  # a little silence, as people leave
    return spoken + 1e-3 * rng.standard_normal(len(spoken)).astype(np.float32)


def test_a_good_recording_has_nothing_wrong(wave):
    for level in (1.0, 0.3, 0.1):
        check = check_recording(level * wave, TEXT, Ears(TEXT))
        assert check.problems == () and check.heard == TEXT
        assert check.facts()["noise_db"] > 30


SPOILED = {
    "nothing to hear": lambda wave: 0 * wave,
    "clipped": lambda wave: np.clip(5 * wave, -1, 1),
    "too quiet": lambda wave: 1e-3 * wave,
    "too short": lambda wave: wave[6000:12000],
    "too long": lambda wave: np.tile(wave, 12),
    "noisy": lambda wave: wave + 0.2 * np.random.default_rng(1).standard_normal(len(wave)),
}


@pytest.mark.parametrize("what", SPOILED)
def test_each_fault_is_one_line_that_begins_with_its_name(wave, what):
    check = check_recording(np.float32(SPOILED[what](wave)), TEXT, Ears(TEXT))
    assert check.problems and check.problems[0].startswith(what)
    assert all("\n" not in problem and len(problem) < 200 for problem in check.problems)


def test_clipping_is_found_at_any_level(wave):
    clipped = 0.2 * np.clip(5 * wave, -1, 1)  # turned down afterwards
    assert check_recording(clipped, TEXT).problems[0].startswith("clipped")


@pytest.mark.parametrize("heard", ["", "anna is in the school", "two plus two is four"])
def test_another_sentence_is_said_with_what_was_heard(wave, heard):
    (problem,) = check_recording(wave, TEXT, Ears(heard)).problems
    assert problem.startswith("wrong sentence") and repr(TEXT) in problem
    assert repr(heard) in problem or "heard 'nothing'" in problem


def test_a_slip_of_the_judge_is_forgiven(wave):
    assert not check_recording(wave, TEXT, Ears("the pig dog is in the house")).problems


def test_without_a_judge_only_the_words_go_unchecked(wave):
    check = check_recording(wave, "two plus two is four")
    assert check.problems == () and check.heard is None


class Corpora:
    """Recordings in a language that nothing here knows."""

    normalise = staticmethod(world.normalise)

    def judges(self) -> dict:
        raise UserError("nothing here knows the language")


def test_without_a_grammar_the_open_judge_checks_the_sentence(whisper, wave) -> None:
    judge = sentence_judge(Corpora(), load_recipe("smoke"))
    assert not check_recording(wave, TEXT, judge).problems
    (problem,) = check_recording(wave, "nine plus two is eleven", judge).problems
    assert problem.startswith("wrong sentence: heard 'the big dog is in the house'")


def test_without_any_judge_a_line_says_so() -> None:
    said: list[str] = []
    recipe = load_recipe("smoke", {"evaluation.open_judge": "none"})
    assert sentence_judge(Corpora(), recipe, said.append) is None
    assert "not checked: nothing here knows the language" in said[0]
