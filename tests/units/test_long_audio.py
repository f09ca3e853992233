"""Recordings of any length: exact where exact is promised, as published where that is asked for."""

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.units import long_audio
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.long_audio import encode_long
from tests.units.test_features import VARIANTS, make_encoder, noise


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("samples", [400, 30_000, 320 * 100 + 80, 320 * 100 + 79, 50_123])
def test_in_pieces_equals_at_once(monkeypatch, variant, samples):
    monkeypatch.setattr(long_audio, "PIECE", 50)
    encoder = FeatureEncoder(make_encoder(variant), 3, normalize=variant == "large")
    wave = noise(samples)
    features, dropped, approximate = encode_long(encoder, wave)
    assert not approximate and not dropped
    torch.testing.assert_close(features, encoder([wave])[0], atol=2e-5, rtol=1e-5)


def test_beyond_the_limit_it_says_that_it_is_approximate_and_stays_near(monkeypatch):
    monkeypatch.setattr(long_audio, "WINDOW", 60)
    monkeypatch.setattr(long_audio, "MARGIN", 20)
    encoder, wave = FeatureEncoder(make_encoder(), 2), noise(16_000 * 4)
    exact, _, approximate = encode_long(encoder, wave)
    assert not approximate
    monkeypatch.setattr(long_audio, "ATTENTION_LIMIT_S", 3)
    near, _, approximate = encode_long(encoder, wave)
    assert approximate and near.shape == exact.shape
    error = (near - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0 < error.mean() < 0.3


def test_release_chunks_lose_the_frames_at_their_edges(monkeypatch):
    monkeypatch.setattr(long_audio, "RELEASE_CHUNK", 16_000)
    encoder, wave = FeatureEncoder(make_encoder(), 2), noise(32_917)
    chunks = wave[:16_000], wave[16_000:32_000], wave[32_000:]
    expected = torch.cat([encoder([chunk])[0] for chunk in chunks])
    found, _, _ = encode_long(encoder, wave, "release")
    torch.testing.assert_close(found, expected)
    assert len(found) == 49 + 49 + 2


def test_a_fragment_too_short_for_a_frame_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(long_audio, "RELEASE_CHUNK", 16_000)
    encoder = FeatureEncoder(make_encoder(), 2)
    found, dropped, _ = encode_long(encoder, noise(16_399), "release")
    assert (dropped, len(found)) == (399, 49)


@pytest.mark.parametrize("mode", long_audio.MODES)
def test_too_short_is_refused(mode):
    with pytest.raises(UserError, match="at least 400"):
        encode_long(FeatureEncoder(make_encoder(), 1), np.zeros(399, np.float32), mode)


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="exact, release"):
        encode_long(FeatureEncoder(make_encoder(), 1), noise(800), "fast")
