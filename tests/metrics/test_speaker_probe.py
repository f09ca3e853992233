"""Speaker probe: it finds units that know the speaker, and needs enough speech to say so."""

import numpy as np
import pytest

from speechgpt_lib.metrics.unit_quality import speaker_probe


def utterances(biased: bool) -> tuple[list[np.ndarray], list[str]]:
    """Forty utterances of two speakers; biased: each speaker prefers units of their own."""
    rng = np.random.default_rng(0)
    speakers = ["anna", "peter"] * 20
    low = {"anna": 0, "peter": 5 if biased else 0}
    return [rng.integers(low[s], low[s] + 10, 80) for s in speakers], speakers


def test_units_that_know_the_speaker_are_found_out_and_others_are_not():
    assert speaker_probe(*utterances(biased=True), 20) > 0.95
    assert 0.25 < speaker_probe(*utterances(biased=False), 20) < 0.75


def test_it_is_repeatable():
    first, again = (speaker_probe(*utterances(True), 20, seed=3) for _ in range(2))
    assert first == again


def test_too_little_speech_is_refused():
    units, speakers = utterances(True)
    with pytest.raises(ValueError, match="two speakers or more with 4 utterances each, found 1"):
        speaker_probe(units[::2], speakers[::2], 20)
    with pytest.raises(ValueError, match="found 2 and 1"):
        speaker_probe(units[:3], speakers[:3], 20)
