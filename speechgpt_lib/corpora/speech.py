"""Text to speech without downloads: eSpeak NG of the wheel of praat-parselmouth, with its phones;
or a natural voice, without them (`natural.py`).

eSpeak carries a little state from one sentence to the next: the same sentences in the same order,
from the start of a process, give the same samples; `lab.speak_all` does that.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from speechgpt_lib.corpora.audio import to_16_khz
from speechgpt_lib.corpora.natural import NATURAL_VOICES, synthesize_naturally
from speechgpt_lib.errors import UserError

VOICES = (
    "Female1 Female2 Female3 Female4 Female5 Male1 Male2 Male3 Male4 Male5 Male6 Male7 "
    "Linda Steph Annie Auntie Storm Travis Andy Quincy"
).split()
EXTRAS = (  # odder ones, for those who should know many
    "Boris Croak Denis Gene Gene2 Iven3 John Kaukovalta Lee Mario Max Michael Mr_Serious Norbert "
    "Rob Robert Steph2 Steph3 Whisper Zac"
).split()
ACCENTS = (
    "English (America)",
    "English (Great Britain)",
    "English (Received Pronunciation)",
    "English (Scotland)",
    "English (Lancaster)",
    "English (West Midlands)",
    "English (Caribbean)",
)
PEAK = 0.7
ESPEAK_RATE = 22_050  # Hz.  Praat could resample, in three times the time of speaking


class Phone(NamedTuple):
    """One phone (IPA; empty = silence) from `start` to `end` in seconds."""

    start: float
    end: float
    label: str


class Manner(NamedTuple):
    """How a voice speaks."""

    accent: str = ACCENTS[0]  # one of `ACCENTS`
    melody: float = 1.0  # factor on the voice's own range of pitch; 0: monotonous
    pause: float = 0.01  # seconds between words
    silence: tuple[float, float] = (0.0, 0.0)  # seconds before and after
    seed: int | None = None  # of a change of throat, room and microphone (perturb.py); None: none


PLAIN = Manner()


def synthesize(
    text: str, voice="Female1", rate=175, pitch=1.0, manner: Manner = PLAIN
) -> tuple[np.ndarray, list[Phone]]:
    """Speak `text`; returns float32 samples (n,) at 16 kHz with peak 0.7, and its phones.

    voice: one of `VOICES`, `EXTRAS` or `NATURAL_VOICES`, which tell no phones and keep their own
    pitch.  rate: words per minute.  pitch: factor on the voice's own, 0.5 to 2.
    manner: its accent, melody and pause between words; the rest is up to the caller.
    """
    if voice not in EXTRAS:
        check_voice(voice)
    if not text.strip():
        raise UserError("there is no text to speak: give at least one word")
    if voice in NATURAL_VOICES:
        wave = synthesize_naturally(text, rate)
        return wave * np.float32(PEAK / max(float(np.abs(wave).max()), 1e-9)), []
    from parselmouth.praat import call

    grid, sound = call(_synthesizer(voice, rate, pitch, *manner[:3]), "To Sound", text, "yes")
    wave = to_16_khz(sound.values[0].astype(np.float32), ESPEAK_RATE)
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
def _synthesizer(voice: str, rate: int, pitch: float, accent: str, melody: float, pause: float):
    from parselmouth.praat import call

    synthesizer = call("Create SpeechSynthesizer", accent, voice)
    settings = float(ESPEAK_RATE), pause, pitch, melody, rate, "IPA"
    call(synthesizer, "Speech output settings", *settings)
    return synthesizer
