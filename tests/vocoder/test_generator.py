from __future__ import annotations

import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Optimization, VocoderSettings
from speechgpt_lib.vocoder.generator import InverseSTFT, Rows, UnitGenerator

OPTIMIZATION = Optimization(steps=1, learning_rate=1e-3)
PUBLISHED = VocoderSettings(optimization=OPTIMIZATION, duration_optimization=OPTIMIZATION)
SMALL = PUBLISHED.model_copy(update={"channels": 32, "embedding": 16})
STFT = {"upsample_rates": (4,), "upsample_kernels": (8,), "inverse_stft_hop": 80, "frame_blocks": 1}


@pytest.fixture(params=[{}, STFT], ids=["last convolution", "inverse STFT"])
def tiny(request, tiny) -> VocoderSettings:
    """The tiny geometry, twice: as published, and with a spectrum for its output."""
    return tiny.model_copy(update=request.param)


@pytest.mark.parametrize("changes", [{}, STFT], ids=["last convolution", "inverse STFT"])
def test_every_frame_becomes_exactly_320_samples(changes):
    generator = UnitGenerator(6, SMALL.model_copy(update=changes))
    for batch, frames in ((1, 1), (2, 7), (3, 33)):
        waves = generator(torch.randint(0, 6, (batch, frames)))
        assert waves.shape == (batch, frames * 320)
        assert waves.abs().max() < 1


def test_the_default_geometry_is_the_published_one():
    with torch.device("meta"):
        generator = UnitGenerator(1000, PUBLISHED).fold_weight_norm()
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    assert shapes["dict.weight"] == (1000, 128)
    assert shapes["conv_pre.weight"] == (512, 128, 7)
    assert shapes["ups.0.weight"] == (512, 256, 11)
    assert shapes["ups.4.weight"] == (32, 16, 4)
    assert shapes["resblocks.14.convs2.2.weight"] == (16, 16, 11)
    assert generator.resblocks[14].convs1[2].dilation == (5,)
    assert shapes["conv_post.weight"] == (1, 16, 7)
    assert len(generator.resblocks) == 15


def test_the_inverse_stft_gives_back_a_spectrum_s_wave():
    """But for the ends, whose neighbours are missing."""
    layer, wave = InverseSTFT(80), torch.randn(1, 8000)
    window = torch.ones(layer.fft)
    framed = torch.nn.functional.pad(wave, (layer.padding[0], layer.padding[0]))
    spectrum = torch.stft(framed, layer.fft, 80, window=window, center=False, return_complex=True)
    made = layer(torch.cat([spectrum.real, spectrum.imag], dim=1)[:, :, None]).flatten(1)
    assert made.shape == wave.shape
    inner = slice(layer.fft, -layer.fft)
    assert (made[:, inner] - wave[:, inner]).abs().max() < 1e-5


def test_folding_the_weight_norm_changes_names_but_no_sound(tiny):
    torch.manual_seed(0)
    generator = UnitGenerator(6, tiny).eval()
    with torch.no_grad():
        for parameter in generator.parameters():  # away from the start, where g is the norm of v
            parameter.mul_(1.5 * torch.rand_like(parameter) + 0.5)
    units = torch.randint(0, 6, (2, 9))
    with torch.inference_mode():
        before = generator(units)
        after = generator.fold_weight_norm()(units)
    assert before.std() > 1e-2
    assert (before - after).abs().max() <= 1e-5
    assert not [name for name in generator.state_dict() if "parametrizations" in name]
    assert generator.fold_weight_norm() is generator  # twice does no harm


def test_units_far_away_are_not_heard(tiny):
    """The receptive field is bounded, which streaming will rest on."""
    generator = UnitGenerator(6, tiny).eval()
    one = torch.zeros(1, 40, dtype=torch.long)
    other = one.clone()
    other[0, 30:] = 5
    with torch.inference_mode():
        a, b = generator(one)[0], generator(other)[0]
    assert torch.equal(a[: 20 * 320], b[: 20 * 320])
    assert not torch.allclose(a[30 * 320 :], b[30 * 320 :])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 24}, "multiple of 32"),
        ({"upsample_kernels": (10, 8, 8, 4, 4)}, "cannot upsample by exactly 5"),
        ({"upsample_kernels": (11, 2, 8, 4, 4)}, "cannot upsample by exactly 4"),
        ({"resblock_kernels": (3, 6, 11)}, "must be odd"),
    ],
)
def test_a_geometry_that_cannot_be_built_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        UnitGenerator(6, SMALL.model_copy(update=changes))


@pytest.mark.parametrize("lengths", [[5, 5], [1, 9], [3, 8, 1, 8, 2]])
def test_each_row_of_a_padded_batch_sounds_as_if_alone(tiny, lengths):
    torch.manual_seed(0)
    generator = UnitGenerator(6, tiny, speakers=2).eval()
    with torch.no_grad():
        for parameter in generator.parameters():  # biases are what padding turns into sound
            parameter.add_(0.1 * torch.randn_like(parameter))
    units = torch.randint(0, 6, (len(lengths), max(lengths)))
    speakers = torch.arange(len(lengths)) % 2
    with torch.inference_mode():
        rows = Rows(torch.tensor(lengths), units.shape[1])
        together = generator(units, speakers, rows)
        careless = generator(units, speakers)
        for i, length in enumerate(lengths):
            alone = generator(units[i : i + 1, :length], speakers[i : i + 1])[0]
            assert alone.std() > 1e-3
            assert (together[i, : length * 320] - alone).abs().max() <= 1e-5
            if length < max(lengths):  # else this test would not notice careless padding
                assert (careless[i, : length * 320] - alone).abs().max() > 1e-3


def test_speakers_differ(tiny):
    torch.manual_seed(0)
    generator = UnitGenerator(6, tiny, speakers=2).eval()
    assert generator.conv_pre.in_channels == 2 * tiny.embedding
    waves = generator(torch.zeros(2, 9, dtype=torch.long), torch.tensor([0, 1]))
    assert not torch.allclose(waves[0], waves[1])
