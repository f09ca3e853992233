"""Text → speech → units: by eSpeak, by any program, and what happens when it fails."""

from __future__ import annotations

import shlex
import sys

import numpy as np
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.text_to_unit.speech import speech_voicing
from tests.builders import tiny_inventory

WRITES_NOISE = """
import sys, numpy, soundfile
text = sys.stdin.read()
if "fail" in text:
    sys.exit("no such voice")
if "silent" not in text:
    noise = numpy.random.default_rng(len(text)).normal(scale=0.1, size=(22050, 2))
    soundfile.write(sys.argv[1], noise, 22050)
"""


@pytest.fixture(scope="module")
def inventory():
    return tiny_inventory()


@pytest.fixture
def program(tmp_path):
    (tmp_path / "speak.py").write_text(WRITES_NOISE)
    return f"{shlex.quote(sys.executable)} {tmp_path / 'speak.py'} {{wav}}"


@pytest.mark.slow
def test_espeak_gives_units_of_what_it_says(inventory) -> None:
    voicing = speech_voicing("espeak", inventory, "Female2")
    first, second = voicing.generate(["the dog is red", "anna and peter go to the market"])
    assert len(second) > len(first) > 5
    for units in (first, second):
        assert units.dtype == np.int64 and units.min() >= 0 and units.max() < inventory.count
        assert (units[1:] != units[:-1]).all()
    assert voicing.generate(["the dog is red"])[0].tolist() == first.tolist(), "repeatable"
    assert voicing.inventory == inventory.id and "eSpeak" in voicing.name


def test_any_program_can_speak(inventory, program) -> None:
    voicing = speech_voicing(program, inventory, "")
    made = voicing.generate(["one", "three", "one"])
    assert made[0].tolist() == made[2].tolist() != made[1].tolist()
    assert voicing.generate([]) == []


def test_failures_say_what_happened(inventory, program) -> None:
    voicing = speech_voicing(program, inventory, "")
    with pytest.raises(UserError, match="no sound of 'please fail'.*no such voice"):
        voicing.generate(["please fail"])
    with pytest.raises(UserError, match="no sound"):
        voicing.generate(["silent"])
    with pytest.raises(UserError, match="no program 'not-here'"):
        speech_voicing("not-here {wav}", inventory, "").generate(["a"])
    with pytest.raises(UserError, match="has no {wav}"):
        speech_voicing("piper --model x", inventory, "")
    with pytest.raises(UserError, match="unknown voice 'Nobody'"):
        speech_voicing("espeak", inventory, "Nobody")
    assert voicing.refuses("?!") and voicing.refuses("a dog") is None
