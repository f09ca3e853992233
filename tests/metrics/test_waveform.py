"""Waveform measures: known signals give known spectra, pitches and distances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct
from scipy.signal import lfilter

from speechgpt_lib.metrics import waveform
from speechgpt_lib.metrics.waveform import (
    f0_rmse,
    f0_track,
    log_mel,
    log_spectral_distance,
    mel_cepstral_distance,
    voicing_error,
    warping_path,
)


def tone(hz, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * 16000)) / 16000)


def buzz(hz, seconds=1.0):
    """A voice-like sum of harmonics below 4 kHz."""
    return sum(tone(hz * k, seconds) / k for k in range(1, int(4000 // hz))) * 0.2


def noise(seconds=1.0, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))


def test_log_mel_shape_and_peak():
    mel = log_mel(tone(1000))
    assert mel.shape == (98, 40)  # (16000 - 400) / 160 + 1
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    assert set(mel.argmax(1)) == {np.abs(edges[1:-1] - 1000).argmin()}
    assert log_mel(np.zeros(399)).shape == (0, 40)


def test_log_mel_of_twice_the_amplitude_and_of_silence():
    assert log_mel(2 * noise()) - log_mel(noise()) == pytest.approx(np.full((98, 40), np.log(2)))
    assert np.unique(log_mel(np.zeros(1600))) == pytest.approx(np.log(1e-5))


def test_distance_of_a_filter_is_at_most_its_ripple_in_decibels():
    # An echo after 0.5 ms changes the envelope alike in every frame, so warping has little to gain
    # (here nothing, and then the two sums differ by their rounding alone).
    plain = noise(2)
    echoed = lfilter([1, *[0] * 7, 0.3], [1], plain)
    gaps = np.subtract(*(dct(log_mel(wave))[:, 1:14] / 40 for wave in (plain, echoed)))
    frames = 10 / np.log(10) * np.sqrt(2) * np.linalg.norm(gaps, axis=1).mean()
    assert 0.5 < mel_cepstral_distance(plain, echoed) <= frames * (1 + 1e-12) < 4


def test_distance_formula(monkeypatch):
    # Two constant log spectra differ by a cosine of amplitude 1 neper: 8.686 / sqrt(2) dB r.m.s.
    ripple = np.cos(np.pi * 3 * (np.arange(40) + 0.5) / 40)
    spectra = iter([np.zeros((5, 40)), np.tile(ripple, (5, 1))])
    monkeypatch.setattr(waveform, "log_mel", lambda wave: next(spectra))
    decibels = mel_cepstral_distance(np.ones(400), np.ones(400))
    assert decibels == pytest.approx(20 / np.log(10) / np.sqrt(2))


def test_distance_is_zero_for_the_same_and_ignores_level():
    wave = buzz(120) + noise()
    assert mel_cepstral_distance(wave, wave) == 0
    assert mel_cepstral_distance(wave, 0.3 * wave) == pytest.approx(0, abs=1e-6)
    assert mel_cepstral_distance(wave, noise(seed=1)) > 2


def test_warping_forgives_timing():
    slow = np.concatenate([buzz(120, 0.4), noise(0.4), buzz(300, 0.4)])
    fast = np.concatenate([buzz(120, 0.2), noise(0.4), buzz(300, 0.3)])
    other = np.concatenate([buzz(300, 0.4), noise(0.4), buzz(120, 0.4)])
    assert mel_cepstral_distance(slow, fast) < 0.6 * mel_cepstral_distance(slow, other)


def test_distance_refusals():
    with pytest.raises(ValueError, match="at least 25 ms"):
        mel_cepstral_distance(np.zeros(100), noise())
    with pytest.raises(ValueError, match=r"\(2, 100\)"):
        log_mel(np.zeros((2, 100)))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
def test_warping_path_is_monotone_and_cheapest(n, m, seed):
    distances = np.random.default_rng(seed).random((n, m))
    path = warping_path(distances)
    assert tuple(path[0]) == (0, 0) and tuple(path[-1]) == (n - 1, m - 1)
    assert {tuple(step) for step in np.diff(path, axis=0)} <= {(0, 1), (1, 0), (1, 1)}

    best = np.full((n, m), np.inf)
    for i in range(n):
        for j in range(m):
            before = [
                best[a, b] for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0
            ]
            best[i, j] = distances[i, j] + min(before, default=0)
    assert distances[tuple(path.T)].sum() == pytest.approx(best[-1, -1])


def test_f0_track_of_known_pitch():
    wave = np.concatenate([np.zeros(4800), buzz(120, 0.5), noise(0.3), buzz(200, 0.5)])
    track = f0_track(wave)
    assert track.shape == (160,)
    assert (track[:25] == 0).all()
    assert track[36:74] == pytest.approx(120, abs=1.5)
    assert track[116:154] == pytest.approx(200, abs=1.5)


@pytest.mark.parametrize("samples", [0, 1, 159, 826, 827, 1000])
def test_f0_track_of_almost_nothing(samples):
    track = f0_track(np.zeros(samples))
    assert track.shape == (-(-samples // 160),) and not track.any()


def test_f0_rmse():
    a, b = np.array([100, 0, 200, 150]), np.array([103, 500, 0, 146, 7])
    assert f0_rmse(a, b) == pytest.approx(np.sqrt((9 + 16) / 2))
    assert np.isnan(f0_rmse(np.array([100, 0]), np.array([0, 100])))
    assert f0_rmse(f0_track(buzz(120)), f0_track(buzz(150))) == pytest.approx(30, abs=1)


def test_log_spectral_distance_is_how_much_louder_each_frequency_is():
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(16_000)
    assert log_spectral_distance(noise, noise) == 0
    assert log_spectral_distance(noise, 0.3 * noise) < 1e-9, "level does not matter"
    assert log_spectral_distance(noise, noise + 1e-3 * rng.standard_normal(16_000)) < 1
    assert log_spectral_distance(noise, np.cumsum(noise) / 10) > 5  # other timbre
    assert log_spectral_distance(noise[:8000], noise) < 0.5  # the longer is cut
    with pytest.raises(ValueError, match="25 ms"):
        log_spectral_distance(noise, noise[:300])


def test_voicing_error_counts_frames_voiced_in_one_only():
    a, b = np.array([0, 100, 100, 0, 120]), np.array([0, 0, 90, 80, 118, 100])
    assert voicing_error(a, b) == pytest.approx(2 / 5)
    assert voicing_error(a, a) == 0
    assert np.isnan(voicing_error(a[:0], b))
