"""Text to speech without downloads: eSpeak NG of the wheel of praat-parselmouth, with its phones;
or a natural voice, without them (`natural.py`).

eSpeak carries a little state from one sentence to the next: the same sentences in the same order,
from the start of a process, give the same samples; `lab.speak_all` does that.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from speechgpt_lib.corpora.natural import NATURAL_VOICES, synthesize_naturally
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE

VOICES = (
    "Female1 Female2 Female3 Female4 Female5 Male1 Male2 Male3 Male4 Male5 Male6 Male7 "
    "Linda Steph Annie Auntie Storm Travis Andy Quincy"
).split()
PEAK = 0.7


class Phone(NamedTuple):
    """One phone (IPA; empty = silence) from `start` to `end` in seconds."""

    start: float
    end: float
    label: str


def synthesize(text: str, voice="Female1", rate=175, pitch=1.0) -> tuple[np.ndarray, list[Phone]]:
    """Speak `text`; returns float32 samples (n,) at 16 kHz with peak 0.7, and its phones.

    voice: one of `VOICES` or `NATURAL_VOICES`, which tell no phones and keep their own pitch.
    rate: words per minute.  pitch: factor on the voice's own, 0.5 to 2.
    """
    check_voice(voice)
    if not text.strip():
        raise UserError("there is no text to speak: give at least one word")
    if voice in NATURAL_VOICES:
        wave = synthesize_naturally(text, rate)
        return wave * np.float32(PEAK / max(float(np.abs(wave).max()), 1e-9)), []
    from parselmouth.praat import call

    grid, sound = call(_synthesizer(voice, rate, pitch), "To Sound", text, "yes")
    wave = sound.values[0].astype(np.float32)
    wave *= PEAK / max(float(np.abs(wave).max()), 1e-9)
    tier = call(grid, "Get tier name", call(grid, "Get number of tiers"))
    # One call for all intervals: a line of start, tier, label (`?` if empty) and end for each.
    table = call(grid, "List", False, 4, True, True).splitlines()[1:]
    phones = [
        Phone(float(start), float(end), label.replace("?", ""))
        for start, name, label, end in (line.split("\t") for line in table)
        if name == tier
    ]
    return wave, phones


def check_voice(voice: str) -> None:
    """Raises UserError for a voice that is not there, with those that are."""
    known = (*VOICES, *NATURAL_VOICES)
    if voice not in known:
        raise UserError(f"unknown voice {voice!r}: choose one of {', '.join(known)}")


@functools.lru_cache(maxsize=64)
def _synthesizer(voice: str, rate: int, pitch: float):
    from parselmouth.praat import call

    synthesizer = call("Create SpeechSynthesizer", "English (America)", voice)
    call(synthesizer, "Speech output settings", float(SAMPLE_RATE), 0.01, pitch, 1.0, rate, "IPA")
    return synthesizer
