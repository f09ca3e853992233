"""Perturbed speech keeps its time, its level and its words; everything else may change."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt_lib.corpora.perturb import BINS, _frames, _wave, perturb
from tests.builders import spoken


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return spoken("the small red dog is in the garden", voice="Male1")[0]


def test_a_seed_fixes_what_happens(wave: np.ndarray) -> None:
    first, again, other = (perturb(wave, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.allclose(first, other, atol=0.01)
    assert np.abs(first - wave).max() > 0.01


@pytest.mark.parametrize("samples", [1, 255, 400, 16_001, 24_000])
def test_length_and_level_stay(wave: np.ndarray, samples: int) -> None:
    piece = wave[4000 : 4000 + samples]
    found = perturb(piece, np.random.default_rng(0))
    assert found.shape == piece.shape and found.dtype == np.float32 and np.isfinite(found).all()
    assert found.std() == pytest.approx(piece.std(), rel=0.01)


def test_silence_stays_silent() -> None:
    assert not perturb(np.zeros(8000, np.float32), np.random.default_rng(0)).any()


def test_taking_apart_and_putting_together_is_the_identity(wave: np.ndarray) -> None:
    parts = _frames(wave)
    assert parts.shape[1] == BINS
    assert np.allclose(_wave(parts, len(wave)), wave, atol=1e-5)


def test_words_stay_where_they_are(wave: np.ndarray) -> None:
    def loudness(samples: np.ndarray) -> np.ndarray:  # every 20 ms
        frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
        return np.log(np.square(frames).mean(1) + 1e-4)

    own = loudness(wave)
    fits = []
    for shift in (-10, 0, 10):  # 0.2 s
        heard = [loudness(perturb(wave, np.random.default_rng(seed))) for seed in range(8)]
        fits.append(np.mean([np.corrcoef(own, np.roll(h, shift))[0, 1] for h in heard]))
    assert fits[1] > 0.6 and fits[1] > fits[0] + 0.3 and fits[1] > fits[2] + 0.3
