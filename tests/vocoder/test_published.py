"""The published vocoder: a genuine checkpoint of fairseq, one built alike, and fairseq itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.vocoder.published import vocoder_from_fairseq
from speechgpt_lib.vocoder.synthesis import Vocoder

CONFIG = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "num_embeddings": 12,
    "embedding_dim": 8,
    "model_in_dim": 8,
    "code_hop_size": 320,
    "sampling_rate": 16000,
    "f0": False,
    "dur_predictor_params": {
        "encoder_embed_dim": 8,
        "var_pred_hidden_dim": 6,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}
SPEAKERS = {0: {}, 3: {"multispkr": "_", "num_speakers": 3, "model_in_dim": 16}}


def tensors_of(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random checkpoint with fairseq's names and shapes, not made by our modules."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}

    def plain(name: str, *shape: int, scale: float = 0.3) -> None:
        found[name] = scale * torch.randn(*shape, generator=draw)

    def normed(name: str, out: int, *shape: int) -> None:
        plain(f"{name}.weight_v", *shape)
        found[f"{name}.weight_g"] = 0.5 + torch.rand(shape[0], 1, 1, generator=draw)
        plain(f"{name}.bias", out, scale=0.1)

    width, unit = config["upsample_initial_channel"], config["embedding_dim"]
    hidden = config["dur_predictor_params"]["var_pred_hidden_dim"]
    blocks = zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
    blocks = list(enumerate(blocks))
    plain("dict.weight", config["num_embeddings"], unit)
    if speakers := config.get("num_speakers"):
        plain("spkr.weight", speakers, unit)
    normed("conv_pre", width, width, config["model_in_dim"], 7)
    for i, kernel in enumerate(config["upsample_kernel_sizes"]):
        normed(f"ups.{i}", width // 2, width, width // 2, kernel)
        width //= 2
        for j, (size, dilations) in blocks:
            for part in ("convs1", "convs2"):
                for k in range(len(dilations)):
                    normed(f"resblocks.{3 * i + j}.{part}.{k}", width, width, width, size)
    normed("conv_post", 1, 1, width, 7)
    for name, inputs in (("conv1.0", unit), ("conv2.0", hidden)):
        plain(f"dur_predictor.{name}.weight", hidden, inputs, 3)
        plain(f"dur_predictor.{name}.bias", hidden)
    for name in ("ln1", "ln2"):
        found[f"dur_predictor.{name}.weight"] = torch.ones(hidden)
        plain(f"dur_predictor.{name}.bias", hidden)
    plain("dur_predictor.proj.weight", 1, hidden)
    found["dur_predictor.proj.bias"] = torch.tensor([1.2])
    return found


def written(folder: Path, config: dict = CONFIG, tensors: dict | None = None) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(config) if tensors is None else tensors
    torch.save({"generator": tensors}, folder / "vocoder.pt")
    return folder / "vocoder.pt", folder / "config.json"


@pytest.fixture
def genuine(reference) -> Path:
    for folder in (reference, reference / "fixtures"):
        if (folder / "fairseq" / "vocoder").is_dir():
            return folder / "fairseq" / "vocoder"
    pytest.skip("the reference material has no fairseq vocoder")


def test_it_sounds_as_fairseq_made_it_sound(genuine):
    vocoder = vocoder_from_fairseq(genuine / "vocoder.pt", genuine / "config.json", "inventory-a")
    expected = np.load(genuine / "expected.npz")
    code = expected["code"]
    assert vocoder.predict_durations(code).tolist() == expected["durations"].tolist()
    untimed = vocoder.synthesize(code, np.ones_like(code))
    assert untimed.shape == expected["wav_no_dur"].shape
    assert np.abs(untimed - expected["wav_no_dur"]).max() <= 1e-5
    assert np.abs(vocoder.synthesize(code) - expected["wav_dur"]).max() <= 1e-5
    with_invalid = vocoder.synthesize(expected["code_with_invalid"])
    assert with_invalid.shape == expected["wav_dur_invalid_removed"].shape
    assert np.abs(with_invalid - expected["wav_dur_invalid_removed"]).max() <= 1e-5


def test_batches_and_streams_sound_as_fairseq_too(genuine):
    vocoder = vocoder_from_fairseq(genuine / "vocoder.pt", genuine / "config.json", "inventory-a")
    expected = np.load(genuine / "expected.npz")
    code = expected["code"]
    waves = vocoder.synthesize_many([code[:5], code, code[3:9]], batch_s=60)
    assert np.abs(waves[1] - expected["wav_dur"]).max() <= 1e-5
    streamed = np.concatenate(list(vocoder.stream().run(code)))
    assert np.abs(streamed - expected["wav_dur"]).max() <= 1e-5


@pytest.mark.parametrize("speakers", [0, 3])
def test_it_survives_being_saved(tmp_path, speakers):
    config = CONFIG | SPEAKERS[speakers]
    vocoder = vocoder_from_fairseq(*written(tmp_path, config), "inventory-a")
    vocoder.save(tmp_path / "ours")
    again = Vocoder.load(tmp_path / "ours", "inventory-a")
    assert again.speakers == (("0", "1", "2") if speakers else ())
    assert again.drops_negative
    wave = vocoder.synthesize([1, -1, 4, 2])
    assert wave.std() > 1e-3
    assert np.array_equal(again.synthesize([1, -1, 4, 2]), wave)
    assert np.array_equal(again.synthesize([1, 4, 2]), wave)
    assert len(again.synthesize([1, -1, 4], [2, 7, 3])) == 5 * 320
    with pytest.raises(UserError, match="all units are negative"):
        again.synthesize([-1, -1])
    if speakers:
        first, last = (again.synthesize([1, 4, 2], speaker=name) for name in ("0", "2"))
        assert not np.array_equal(first, last)
        with pytest.raises(UserError, match="knows 0, 1, 2"):
            again.synthesize([1], speaker="nobody")
    else:
        with pytest.raises(UserError, match="single voice"):
            again.synthesize([1], speaker="0")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"f0": True}, "f0 is True"),
        ({"f0_quant_num_bin": 32}, "f0_quant_num_bin"),
        ({"resblock": "2"}, "resblock"),
        ({"code_hop_size": 160}, "code_hop_size"),
        ({"sampling_rate": 22050}, "sampling_rate"),
        ({"embedder_params": {"a": 1}}, "embedder_params"),
        ({"num_embeddings": None}, "does not describe"),
        ({"num_embeddings": 13}, "shape"),
        ({"upsample_rates": [5, 4, 4, 2, 4]}, "multiply to 640"),
        ({"upsample_initial_channel": 64}, "shape"),
        ({"resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1]] * 2}, "resblocks"),
        ({"resblock_kernel_sizes": "wide"}, "does not describe"),
        ({"dur_predictor_params": {"var_pred_kernel_size": 5}}, "var_pred_kernel_size is 5"),
        ({"dur_predictor_params": None}, "lacks 'var_pred_hidden_dim'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, changes, words):
    checkpoint, config = written(tmp_path)
    config.write_text(json.dumps(CONFIG | changes))
    with pytest.raises(UserError, match=words) as caught:
        vocoder_from_fairseq(checkpoint, config, "inventory-a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "<html>", "version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_config_that_is_none_is_refused(tmp_path, text):
    checkpoint, config = written(tmp_path)
    config.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        vocoder_from_fairseq(checkpoint, config, "inventory-a")


def test_missing_and_strange_tensors_are_named(tmp_path):
    for name, words in (
        ("ups.2.weight_v", "lacks ups.2.weight"),
        ("conv_post.bias", "lacks conv_post.bias"),
        ("dur_predictor.proj.weight", "lacks dur_predictor.proj.weight"),
    ):
        tensors = tensors_of(CONFIG)
        del tensors[name]
        with pytest.raises(UserError, match=words):
            vocoder_from_fairseq(*written(tmp_path / name, tensors=tensors), "inventory-a")
    whole = tensors_of(CONFIG)
    untimed = {name: whole[name] for name in whole if not name.startswith("dur_predictor")}
    for tensors, words in (
        (untimed, "predicts durations"),
        (whole | {"f0_embed.weight": torch.zeros(2)}, "no place"),
        ({}, "expected a `generator`"),
    ):
        with pytest.raises(UserError, match=words):
            vocoder_from_fairseq(*written(tmp_path / "other", tensors=tensors), "inventory-a")


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    checkpoint, config = written(tmp_path)
    mark = tmp_path / "ran"
    torch.save({"generator": tensors_of(CONFIG), "extra": Bomb(mark)}, checkpoint)
    with pytest.raises(UserError):
        vocoder_from_fairseq(checkpoint, config, "inventory-a")
    checkpoint.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError):
        vocoder_from_fairseq(checkpoint, config, "inventory-a")
    assert not mark.exists()
    checkpoint.write_bytes(written(tmp_path / "whole")[0].read_bytes()[:2000])
    with pytest.raises(UserError, match="whole"):
        vocoder_from_fairseq(checkpoint, config, "inventory-a")


def test_units_of_another_inventory_are_refused(tmp_path):
    vocoder = vocoder_from_fairseq(*written(tmp_path), "inventory-a")
    with pytest.raises(UserError, match=r"inventory-a.*inventory-b"):
        vocoder.synthesize([1], inventory="inventory-b")


@pytest.mark.parametrize("speakers", [0, 3])
def test_fairseq_itself_says_the_same(tmp_path, fairseq, speakers):
    """Real fairseq, installed by `make fairseq`; required in CI."""
    from fairseq.models.text_to_speech.codehifigan import CodeGenerator

    config = CONFIG | SPEAKERS[speakers]
    checkpoint, config_path = written(tmp_path, config)
    theirs = CodeGenerator(config).eval()
    theirs.load_state_dict(torch.load(checkpoint, weights_only=True)["generator"])
    theirs.remove_weight_norm()
    ours = vocoder_from_fairseq(checkpoint, config_path, "inventory-a")
    for seed in range(3):
        code = np.random.default_rng(seed).integers(0, 12, 20)
        speaker = {"spkr": torch.tensor([[seed]])} if speakers else {}
        name = str(seed) if speakers else None
        with torch.inference_mode():
            given = speaker | {"code": torch.from_numpy(code)[None]}
            fixed = theirs(**given)[0, 0].numpy()
            timed = theirs(**given, dur_prediction=True)[0, 0].numpy()
        assert np.abs(ours.synthesize(code, np.ones_like(code), speaker=name) - fixed).max() <= 1e-5
        assert ours.synthesize(code, speaker=name).shape == timed.shape
        assert np.abs(ours.synthesize(code, speaker=name) - timed).max() <= 1e-5
