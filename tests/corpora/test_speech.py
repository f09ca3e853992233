"""Speech without downloads: repeatable, at 16 kHz, with the phones that were spoken."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt_lib.corpora.lab import speak_all
from speechgpt_lib.corpora.speech import VOICES, synthesize
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.errors import UserError


def test_phones_cover_the_wave() -> None:
    wave, phones = synthesize("the big dog", "Male1")
    assert wave.dtype == np.float32 and np.abs(wave).max() == pytest.approx(0.7, abs=1e-3)
    assert phones[0].start == 0 and phones[-1].end == pytest.approx(len(wave) / 16_000, abs=0.01)
    assert all(a.end <= b.start + 1e-6 for a, b in zip(phones, phones[1:], strict=False))
    assert {"b", "ɡ", "d"} <= {p.label for p in phones} and "" in {p.label for p in phones}


def test_voice_rate_and_pitch_are_heard() -> None:
    plain = synthesize("the big dog", "Male1")[0]
    assert len(synthesize("the big dog", "Male1", rate=230)[0]) < 0.9 * len(plain)
    assert not np.array_equal(synthesize("the big dog", "Male1", pitch=1.5)[0][:4000], plain[:4000])
    waves = {voice: synthesize("dog", voice)[0].tobytes() for voice in VOICES}
    assert len(set(waves.values())) == len(VOICES) >= 8


def test_the_same_rows_give_the_same_waves_whatever_was_spoken_before() -> None:
    row = Utterance("0", "the big dog", "", "", "Male1", "", rate=175)
    first = speak_all([row] * 2)
    synthesize("something else", "Female3")
    for a, b in zip(first, speak_all([row] * 2), strict=True):
        assert (
            np.array_equal(a.wave, b.wave)
            and a.phones == b.phones
            and a.seconds == len(a.wave) / 16_000
        )


def test_unknown_voice_and_empty_text_are_refused() -> None:
    with pytest.raises(UserError, match="unknown voice 'Nobody'.*Female1"):
        synthesize("a", "Nobody")
    with pytest.raises(UserError, match="no text"):
        synthesize("  ", "Female1")
