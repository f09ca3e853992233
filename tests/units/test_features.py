"""Batched features: those of transformers, and in a batch those of each utterance alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import HubertConfig, HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.units import features
from speechgpt_lib.units.features import FeatureEncoder, normed_convolution, window_sums, windows

PLAIN = {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}
VARIANTS = {
    "base": PLAIN,
    "lab": PLAIN | {"do_stable_layer_norm": True},
    "large": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
    "no projection norm": PLAIN | {"feat_proj_layer_norm": False},
    "odd positions": PLAIN | {"num_conv_pos_embeddings": 31},
}


def make_encoder(variant: str = "base", seed: int = 0) -> HubertModel:
    """A small HuBERT of the published topology; its weights are spread, so every layer shows."""
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(24,) * 7,
        num_conv_pos_embedding_groups=4,
        **({"num_conv_pos_embeddings": 32} | VARIANTS[variant]),
    )
    model = HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Coloured noise: neighbouring samples belong together, as in speech."""
    white = np.random.default_rng((seed, samples)).standard_normal(samples + 8)
    return np.convolve(white, np.ones(9) / 9, "valid").astype(np.float32)[:samples]


@pytest.fixture(scope="module")
def encoder() -> HubertModel:
    return make_encoder()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_equals_transformers(variant):
    model, wave = make_encoder(variant), noise(9999)
    with torch.inference_mode():
        expected = model(torch.from_numpy(wave)[None], output_hidden_states=True)
    found = [FeatureEncoder(model, layer)([wave])[0] for layer in range(1, 5)]
    for k in (0, 1, 2):
        hidden = expected.hidden_states[k + 1][0]
        torch.testing.assert_close(found[k], hidden, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        last = model.encoder.layer_norm(found[3]) if model.config.do_stable_layer_norm else found[3]
    torch.testing.assert_close(last, expected.last_hidden_state[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_mixed_lengths_equals_one_by_one(variant):
    features = FeatureEncoder(make_encoder(variant), 3)
    waves = [noise(n) for n in (16_000, 400, 7231, 719, 720, 16_001, 31_999)]
    for alone, together in zip((features([w])[0] for w in waves), features(waves), strict=True):
        assert alone.shape == together.shape
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(400, 12_000), min_size=1, max_size=6), st.integers(0, 5))
def test_units_of_a_batch_are_those_of_each_alone(encoder, lengths, seed):
    features, waves = FeatureEncoder(encoder, 3), [noise(n, seed) for n in lengths]
    centroids = torch.cat(features([noise(20_000, 7)]))[::4]
    for alone, together in zip((features([w])[0] for w in waves), features(waves), strict=True):
        near, far = torch.cdist(alone, centroids).topk(2, largest=False).values.T
        same = torch.cdist(together, centroids).argmin(1) == torch.cdist(alone, centroids).argmin(1)
        assert (same | (far - near < 1e-4 * far)).all()


def test_a_neighbour_in_the_batch_leaves_no_trace(encoder):
    features, wave = FeatureEncoder(encoder, 4), noise(6000)
    neighbours = np.zeros(20_000, np.float32), 100 * noise(20_000)
    quiet, loud = (features([wave, other])[0] for other in neighbours)
    torch.testing.assert_close(quiet, loud, atol=1e-6, rtol=0)


def test_the_norm_in_the_convolution_is_group_norm():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv1d(1, 16, 10, 5, bias=False), torch.nn.GroupNorm(16, 16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    wave = torch.from_numpy(noise(5000) + 3.0)  # an offset, as a cheap microphone adds it
    expected = norm(conv(wave[None, None]))[0].T
    views = windows(wave[None, :, None], 10, 5)
    parts = conv.weight[:, 0], norm.weight, norm.bias, norm.eps
    found = normed_convolution(views, window_sums(views, [999]), *parts)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decibels", [-10, -20, -30, -43, -50, -60, -70])
def test_loudness_changes_nothing_in_an_encoder_of_our_own(decibels):
    wave, encoder = 0.1 * noise(8000), FeatureEncoder(make_encoder("lab"), 2)
    wave *= 0.1 / wave.std()
    for offset in (0, 1e-3):  # a constant is no sound
        (found,) = encoder([10 ** (decibels / 20) * wave + np.float32(offset)])
        torch.testing.assert_close(found, encoder([wave])[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"lab"}))
def test_a_published_encoder_gets_a_quiet_wave_as_it_is(variant):
    model, wave = make_encoder(variant), 0.005 * noise(8000)
    with torch.inference_mode():
        expected = model(torch.from_numpy(wave)[None], output_hidden_states=True).hidden_states[2]
    (found,) = FeatureEncoder(model, 2)([wave])
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=1e-4)


def test_waveforms_are_brought_to_unit_variance_where_the_encoder_wants_it():
    model, wave = make_encoder("large"), noise(8000)
    (found,) = FeatureEncoder(model, 2, normalize=True)([3 * wave + 1])
    (expected,) = FeatureEncoder(model, 2)([(wave - wave.mean()) / wave.std()])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_bf16_is_near_and_comes_back_as_float32(encoder):
    wave = noise(12_000)
    (exact,) = FeatureEncoder(encoder, 3)([wave])
    (short,) = FeatureEncoder(encoder, 3, precision="bf16")([wave])
    assert short.dtype == torch.float32
    assert (short - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("kernel", [31, 32])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 60])
def test_positions_by_products_are_those_of_the_convolution(kernel: int, frames: int) -> None:
    """What a GPU takes, and a CPU whose grouped convolutions are wrong in bf16."""
    encoder = make_encoder()
    module = nn.Conv1d(32, 32, kernel, padding=kernel // 2, groups=4)
    parts = module.weight.detach(), module.bias.detach(), 4
    made, x = FeatureEncoder(encoder, 1), torch.randn(3, frames, 32)
    wanted = module(x.transpose(1, 2))[..., :frames].transpose(1, 2)
    for convolve in (made._position_product(*parts), made._position_image(*parts)):
        torch.testing.assert_close(convolve(x), wanted, atol=1e-5, rtol=1e-4)


def test_in_bf16_products_take_the_place_of_a_wrong_convolution(encoder, monkeypatch) -> None:
    (wanted,) = FeatureEncoder(encoder, 3, precision="bf16")([noise(12_000)])
    monkeypatch.setattr(features, "has_amx", lambda: True)
    (found,) = FeatureEncoder(encoder, 3, precision="bf16")([noise(12_000)])
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    (exact,) = FeatureEncoder(encoder, 3)([noise(12_000)])
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_the_encoder_itself_is_left_alone(encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    FeatureEncoder(encoder, 4)([noise(4000)])
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": 5}, "layers 1 to 4"),
        ({"layer": 0}, "layers 1 to 4"),
        ({"layer": 1, "precision": "int8"}, "int8"),
    ],
)
def test_what_the_encoder_cannot_do_is_refused(encoder, arguments, words):
    with pytest.raises(UserError, match=words):
        FeatureEncoder(encoder, **arguments)


@pytest.mark.parametrize(
    "waves",
    [[], [np.zeros(399, np.float32)], [np.zeros(4000, np.float32), np.zeros(10, np.float32)]],
)
def test_too_short_audio_is_refused(encoder, waves):
    with pytest.raises(UserError, match="too short"):
        FeatureEncoder(encoder, 1)(waves)
