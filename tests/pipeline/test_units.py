"""HuBERT's teachers: the target voice says what others said, where it can be made here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from speechgpt_lib.corpora.audio import to_16_bits
from speechgpt_lib.corpora.lab import plan_corpus, speak_all
from speechgpt_lib.corpora.speech import PLAIN
from speechgpt_lib.pipeline.units import hears_as_one, teachers_of
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.units.hubert import frame_count, mfcc_of


@pytest.mark.parametrize("name, expected", [("smoke", True), ("lab", False), ("release", False)])
def test_only_what_is_spoken_here_can_be_said_again(name: str, expected: bool) -> None:
    recipe = load_recipe(name)
    assert hears_as_one(recipe) == expected
    own = {"units.hubert.targets_of": "own_voice"} if expected else {}
    assert not hears_as_one(load_recipe(name, own))


def test_a_voice_without_phones_is_no_teacher() -> None:
    recipe = load_recipe("smoke", {"corpora.0.target_voice": "joe"})
    assert not hears_as_one(recipe) and teachers_of(recipe, []) is None


@pytest.mark.slow
def test_teachers_say_the_same_at_the_same_moment() -> None:
    recipe = load_recipe("smoke")
    lab = recipe.corpora[0]
    plan = plan_corpus(lab, recipe.seed)
    own = next(u for u in plan if u.voice == lab.target_voice)
    others = [replace(u, manner=u.manner._replace(seed=None)) for u in plan if u.manner != PLAIN]
    spoken = [replace(u, manner=PLAIN) for u in speak_all([own, *others[:4]])]  # as in the table
    heard = [replace(u, wave=to_16_bits(u.wave)) for u in spoken]
    itself, *teachers = teachers_of(recipe, heard)
    assert itself.wave is heard[0].wave
    assert itself.moments.tolist() == list(range(frame_count(len(itself.wave))))
    fits = []
    for shift in (0, 6):  # 0.12 s
        for u, teacher in zip(spoken[1:], teachers, strict=True):
            ours, theirs = mfcc_of(u.wave), mfcc_of(teacher.wave / np.float32(32767))
            moments = np.roll(teacher.moments, shift)
            assert len(moments) == len(ours)
            fits.append((ours * theirs[moments])[8:-8, :13].mean())
    assert np.mean(fits[:4]) > 0.4 and np.mean(fits[:4]) > 2 * np.mean(fits[4:])
