"""Encoders that give other than 50 units a second: everything counts with their own frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.unit_figures import draw_merging, spectrogram_with_units
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.units import long_audio
from speechgpt_lib.units.extract import ShardEncoder
from speechgpt_lib.units.features import FeatureEncoder, framing
from speechgpt_lib.units.foreign import encoder_from, kmeans_from
from speechgpt_lib.units.inventory import UnitInventory, check_hop
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.long_audio import encode_long
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.speech import SpeechInMemory
from speechgpt_lib.vocoder.synthesis import Vocoder
from tests.units.test_features import PLAIN, noise

KERNELS = {  # kernels and strides of the front end → samples between frames, samples of a window
    "25 Hz": ((10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2), 640, 720),
    "100 Hz": ((10, 3, 3, 3, 3, 2), (5, 2, 2, 2, 2, 2), 160, 240),
    "33 Hz": ((10, 3, 3, 3, 3, 3), (5, 2, 2, 2, 2, 6), 480, 320),
    "50 Hz": ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 320, 400),
}


def encoder_of(name: str, **changes) -> HubertModel:
    kernels, strides, _, _ = KERNELS[name]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_conv_pos_embedding_groups": 4}
    front = {"conv_dim": (24,) * len(kernels), "conv_kernel": kernels, "conv_stride": strides}
    positions = {"num_conv_pos_embeddings": 32}
    options = PLAIN | sizes | heads | front | positions | changes
    return HubertModel(HubertConfig(**options)).eval()


def inventory_of(name: str) -> UnitInventory:
    centroids = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    return UnitInventory.create(encoder_of(name), 2, KMeansUnits(centroids))


@pytest.mark.parametrize("name", KERNELS)
def test_the_rate_is_the_encoders(tmp_path: Path, name: str) -> None:
    _, _, hop, window = KERNELS[name]
    inventory, wave = inventory_of(name), noise(48_000)
    assert framing(inventory.encoder.config) == (hop, window)
    assert inventory.hop == hop and inventory.frame_rate == 16_000 / hop
    _, durations = inventory.encode(wave)
    with torch.inference_mode():
        expected = inventory.encoder(torch.from_numpy(wave)[None]).last_hidden_state.shape[1]
    assert durations.sum() == expected == (48_000 - window) // hop + 1
    inventory.save(tmp_path)
    facts = json.loads((tmp_path / "inventory.json").read_text())
    assert facts["frame_rate_hz"] == 16_000 / hop
    assert facts.get("hop_samples", 320) == hop
    assert UnitInventory.load(tmp_path).id == inventory.id
    (tmp_path / "inventory.json").write_text(json.dumps(facts | {"frame_rate_hz": 12.5}))
    with pytest.raises(UserError, match="says 12.5 units a second, its encoder makes"):
        UnitInventory.load(tmp_path)


@pytest.mark.parametrize("name", KERNELS)
def test_long_audio_in_pieces_is_that_at_once(monkeypatch, name: str) -> None:
    monkeypatch.setattr(long_audio, "PIECE", 50)
    _, _, hop, window = KERNELS[name]
    encoder = FeatureEncoder(encoder_of(name), 2)
    for samples in (window, 30_000, 320 * 100 + 79):
        wave = noise(samples)
        features, _, _ = encode_long(encoder, wave)
        torch.testing.assert_close(features, encoder([wave])[0], atol=2e-5, rtol=1e-5)
    monkeypatch.setattr(long_audio, "RELEASE_CHUNK", 16_000)
    _, dropped, _ = encode_long(encoder, noise(16_000 + window - 1), "release")
    assert dropped == window - 1
    with pytest.raises(UserError, match=f"at least {window} "):
        encoder([noise(window - 1)])


def test_what_holds_no_frame_of_this_encoder_is_set_aside() -> None:
    class Spoken:
        def __init__(self, samples: int):
            self.seconds, self.samples = samples / 16_000, samples

        def read(self) -> np.ndarray:
            return noise(self.samples)

    shards = ShardEncoder(inventory_of("25 Hz"), ExtractionSettings())
    found, counts = shards.encode([Spoken(500), Spoken(16_000), Spoken(48_000)])
    assert found[0]["reason"] == "too_short" and counts.bad == 1
    assert [sum(row["durations"]) for row in found[1:]] == [24, 74] and counts.frames == 98


@pytest.mark.parametrize(
    ("name", "rates"), [("25 Hz", (20, 32)), ("100 Hz", (20, 8)), ("100 Hz", ())]
)
def test_a_vocoder_makes_sound_of_the_same_length(name: str, rates: tuple) -> None:
    inventory = inventory_of(name)
    small = {"upsample_rates": rates, "upsample_kernels": rates, "channels": 8, "embedding": 8}
    small["inverse_stft_hop"] = 0 if rates else inventory.hop
    settings = load_recipe("lab").vocoder.model_copy(update=small)
    generator = UnitGenerator(inventory.count, settings)
    vocoder = Vocoder(generator, DurationPredictor(inventory.count, 8), inventory.id, settings)
    wave = noise(48_000)
    units, durations = inventory.encode(wave)
    spoken = vocoder.synthesize(units, durations)
    assert len(spoken) == inventory.hop * durations.sum()
    assert len(wave) - len(spoken) < 2 * inventory.hop
    frames = np.repeat(units, durations)
    speech = SpeechInMemory([(frames, wave)], inventory.count, hop=inventory.hop)
    part, sound = speech.piece(0, 10, 5)
    np.testing.assert_array_equal(sound, wave[10 * inventory.hop : 15 * inventory.hop])
    stream = vocoder.stream()
    pieces = np.concatenate(list(stream.run(units)))
    np.testing.assert_allclose(pieces, vocoder.synthesize(units), atol=1e-4)


def test_a_vocoder_of_another_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"the imported vocoder makes 320 .* lasts 640 \(25 Hz\)"):
        check_hop(inventory_of("25 Hz"), 320, "the imported vocoder")
    rates = {"vocoder.inverse_stft_hop": 320}
    with pytest.raises(UserError, match="multiply to 640, they must make 320"):
        load_recipe("lab", rates)
    imported = {"imports.inventory": {"encoder": "x", "layer": 1}}
    assert load_recipe("lab", rates | imported).vocoder.hop == 640


def test_figures_show_the_frames_of_the_encoder() -> None:
    inventory, wave = inventory_of("25 Hz"), noise(48_000)
    frames = inventory.kmeans.assign(inventory.features(wave))
    fig = draw_merging(wave, frames, [], inventory.count, inventory.hop)
    assert fig.axes[1].get_xlabel() == "frames of 40 ms"
    assert fig.axes[1].get_yticklabels()[1].get_text() == "25 a second"
    units, durations = inventory.encode(wave)
    fig = spectrogram_with_units(wave, units, durations, inventory.count, hop=inventory.hop)
    assert fig.axes[1].images[0].get_extent()[1] == pytest.approx(1.6)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "relu"}, {"feat_extract_activation": "relu"}, {"conv_pos_batch_norm": True}],
)
def test_parts_that_are_not_computed_here_are_refused(changes: dict) -> None:
    encoder = encoder_of("50 Hz", **changes)
    name = next(iter(changes))
    with pytest.raises(UserError, match=f"the encoder has {name} = "):
        FeatureEncoder(encoder, 1)
    with pytest.raises(UserError, match=f"the encoder has {name} = "):
        UnitInventory.create(encoder, 1, KMeansUnits(np.zeros((4, 32), np.float32)))


def test_a_published_one_of_25_hz(reference: Path, tmp_path: Path) -> None:
    folder = reference / "faults" / "models"
    if not folder.is_dir():
        pytest.skip("the folder of reference material has no faults/models")
    encoder, normalize = encoder_from(folder / "hubert25")
    inventory = UnitInventory.create(encoder, 1, kmeans_from(folder / "km16.npy"), normalize)
    assert (inventory.hop, inventory.frame_rate) == (640, 25.0)
    assert inventory.encode(noise(48_000))[1].sum() == (48_000 - 720) // 640 + 1
    assert replace(inventory, layer=1).hop == 640
