"""Is a recording fit to learn from?  Level, clipping, noise, length, and the right sentence.

Each fault is one line: what was found, what is expected, what to try.  The sentence is checked by
the independent judge of the run's corpus, which knows the corpus' grammar (the run's own model
can't hear the voice yet); without a grammar by the open judge; without any, the length alone is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speechgpt_lib.corpora.audio import nothing_heard
from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics.open_judge import NONE, open_judge
from speechgpt_lib.metrics.unit_errors import wer
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.text_to_unit.spoken_form import in_words, one_spelling

QUIET_DB = -45.0  # of full scale: speech below it is too quiet
CLIPPED = 0.004  # share of samples at the ceiling
NOISY_DB = 12.0  # speech above the noise between words
WORD_S = (0.1, 1.5)  # shortest and longest seconds a word
MARGIN_S = 3.0  # silence before and after, together
WRONG = 0.4  # word error rate against the prompt
FRAME = SAMPLE_RATE // 50


@dataclass(frozen=True)
class Check:
    """What was measured of a recording, and what is wrong with it ([]: nothing)."""

    seconds: float
    level_db: float
    clipped_share: float
    noise_db: float  # speech above noise
    heard: str | None  # by the judge; None: there is none
    problems: tuple[str, ...]

    def facts(self) -> dict:
        """What is kept beside a recording."""
        rounded = {k: round(v, 4) for k, v in vars(self).items() if isinstance(v, float)}
        return rounded | {"heard": self.heard}


def check_recording(wave: np.ndarray, text: str, judge: Judge | None = None) -> Check:
    """Check a wave (samples,) at 16 kHz that should say `text`."""
    seconds, words = len(wave) / SAMPLE_RATE, max(1, len(text.split()))
    if why := nothing_heard(wave):
        problem = f"nothing to hear ({why}): is the microphone muted, or another one chosen?"
        return Check(seconds, -120.0, 0.0, 0.0, None, (problem,))
    level, noise = loudness(wave)
    clipped, problems = share_at_ceiling(wave), []
    if seconds < WORD_S[0] * words:
        found = f"too short: {seconds:.2f} s for {words} words, at least {WORD_S[0] * words:.1f} s"
        problems.append(f"{found} are needed: read to the end before you stop")
    if seconds > WORD_S[1] * words + MARGIN_S:
        found = f"too long: {seconds:.1f} s for {words} words"
        problems.append(f"{found}: read this one sentence, and stop when it is over")
    if level < QUIET_DB:
        found = f"too quiet: speech at {level:.0f} dB of full scale, at least {QUIET_DB:.0f} dB"
        problems.append(f"{found} is needed: come nearer, or turn the microphone up")
    if clipped > CLIPPED:
        found = f"clipped: {100 * clipped:.1f} % of the samples are at the ceiling"
        problems.append(f"{found}: go further away, or turn the microphone down")
    if noise < NOISY_DB:
        found = f"noisy: speech is {noise:.0f} dB above the noise, at least {NOISY_DB:.0f} dB"
        problems.append(f"{found} are needed: find a quieter place")
    heard = None
    if judge is not None and not problems:  # what is faulty anyway need not be understood
        heard = judge.transcribe(wave)
        if wer([text], [heard]) > WRONG:
            found = f"wrong sentence: heard {heard or 'nothing'!r}, expected {text!r}"
            problems.append(f"{found}: read it once more, evenly")
    return Check(seconds, level, clipped, noise, heard, tuple(problems))


def loudness(wave: np.ndarray) -> tuple[float, float]:
    """Level of the speech in dB of full scale, and how far it is above the noise, in dB.

    Over frames of 20 ms: speech is the mean power of the louder half, noise the power of a frame
    that only every twentieth is below (at least that of 16-bit rounding).
    """
    whole = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    if not len(whole):
        whole = wave[None]
    power = np.sort(np.square(whole - whole.mean(), dtype=np.float64).mean(1)) + 1e-10
    speech, noise = power[len(power) // 2 :].mean(), power[len(power) // 20]
    return float(10 * np.log10(speech)), float(10 * np.log10(speech / noise))


def share_at_ceiling(wave: np.ndarray) -> float:
    """The share of samples within 2 % of the loudest one: in clipped speech there are many."""
    size = np.abs(wave)
    return float((size >= 0.98 * size.max()).mean())


@dataclass(frozen=True)
class Spelt:
    """The open judge, in the spelling of the corpora."""

    judge: Judge
    corpora: Corpora

    def transcribe(self, wave: np.ndarray) -> str:
        """The words heard in a wave (samples,) at 16 kHz."""
        return self.corpora.normalise(one_spelling(in_words(self.judge.transcribe(wave))))


def sentence_judge(corpora: Corpora, recipe: Recipe, say=print) -> Judge | None:
    """The judge by which sentences are checked, or None with a line that says why."""
    reason = "the recipe wants no judge"
    try:
        if judges := corpora.judges():
            return judges[""]
    except UserError as error:
        reason = str(error)
    try:
        if (source := recipe.evaluation.open_judge) != NONE:
            return Spelt(open_judge(source, recipe.data), corpora)
    except UserError as error:
        reason = str(error)
    say(f"note: whether the right sentence was read is not checked: {reason}")
    return None
