"""Encoders and centroids of others: features equal to theirs, files that don't fit are refused."""

import argparse
import json

import joblib
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sklearn.cluster import MiniBatchKMeans
from transformers import HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.units import long_audio
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.foreign import (
    conv_layers,
    encoder_from,
    hubert_from_fairseq,
    hubert_from_transformers,
    kmeans_from,
    open_inventory,
)
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from tests.units.test_features import VARIANTS, make_encoder, noise

SETTINGS = {
    "_name": "hubert",
    "extractor_mode": "default",
    "encoder_layers": 4,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_feature_layers": "[(24,10,5)] + [(24,3,2)] * 4 + [(24,2,2)] * 2",
    "conv_bias": False,
    "conv_pos": 32,
    "conv_pos_groups": 4,
}


def as_fairseq(model: HubertModel) -> dict[str, torch.Tensor]:
    """The weights of a HubertModel under fairseq's names."""
    names = {
        "feature_projection.projection": "post_extract_proj",
        "feature_projection.layer_norm": "layer_norm",
        "masked_spec_embed": "mask_emb",
        "attention.": "self_attn.",
        "feed_forward.intermediate_dense": "fc1",
        "feed_forward.output_dense": "fc2",
        "pos_conv_embed.conv.parametrizations.weight.original0": "pos_conv.0.weight_g",
        "pos_conv_embed.conv.parametrizations.weight.original1": "pos_conv.0.weight_v",
        "pos_conv_embed.conv": "pos_conv.0",
    }
    renamed = {}
    for new, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        if new.startswith("encoder.layers."):
            new = new.replace(".layer_norm", ".self_attn_layer_norm")
        if new.startswith("feature_extractor."):
            norm = ".2.1" if model.config.feat_extract_norm == "layer" else ".2"
            new = new.replace(".conv.", ".0.").replace(".layer_norm", norm)
        renamed[new] = tensor
    return renamed


def write(path, model: HubertModel, settings: dict | None = None, /, **changes):
    """A checkpoint as fairseq's trainer lays it out."""
    heads = {"final_proj.weight": torch.zeros(2, 32), "label_embs_concat": torch.zeros(5, 2)}
    cfg = {"model": SETTINGS | (settings or {}), "task": {"normalize": False}}
    state = {"args": None, "cfg": cfg, "model": as_fairseq(model) | heads}
    torch.save(state | changes, path)
    return path


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("base", {}),
        ("lab", {"layer_norm_first": True}),
        ("large", {"layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True}),
    ],
)
def test_a_checkpoint_in_fairseqs_layout_gives_the_same_features(tmp_path, variant, settings):
    model, wave = make_encoder(variant), noise(9000)
    found, normalize = hubert_from_fairseq(write(tmp_path / "x.pt", model, settings))
    assert not normalize
    for layer in (1, 4):
        theirs, ours = (FeatureEncoder(encoder, layer)([wave]) for encoder in (found, model))
        torch.testing.assert_close(theirs, ours)


def test_older_checkpoints_state_their_settings_in_a_namespace(tmp_path):
    arguments = argparse.Namespace(**SETTINGS, normalize=True, arch="hubert")
    path = write(tmp_path / "x.pt", make_encoder(), cfg=None, args=arguments)
    assert hubert_from_fairseq(path)[1] is True


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_inventory_of_a_foreign_encoder_survives_saving(tmp_path, variant):
    model = make_encoder(variant)
    inventory = UnitInventory.create(model, 3, kmeans_of(7), normalize=True)
    folder = tmp_path / "inventory"
    folder.mkdir()
    inventory.save(folder)
    loaded = UnitInventory.load(folder)
    assert (loaded.id, loaded.normalize) == (inventory.id, True)
    assert loaded.encode(noise(8000))[0].tolist() == inventory.encode(noise(8000))[0].tolist()
    assert loaded.id != UnitInventory.create(model, 3, kmeans_of(7)).id


def kmeans_of(count: int):
    return KMeansUnits(np.random.default_rng(0).normal(size=(count, 32)).astype(np.float32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer_norm_first": True, "extractor_mode": "group"}, "extractor_mode"),
        ({"activation_fn": "relu"}, "activation_fn = 'relu'"),
        ({"layer_type": "conformer"}, "conformer"),
        ({"encoder_layers": 5}, "lacks encoder.layers.4"),
        ({"encoder_layers": 3}, "no place"),
        ({"encoder_ffn_embed_dim": 65}, "shape"),
        ({"encoder_attention_heads": "many"}, "make no HuBERT"),
        ({"_name": "wav2vec2"}, "kind 'wav2vec2'"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "conv_feature_layers"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        hubert_from_fairseq(write(tmp_path / "x.pt", make_encoder(), settings))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "no `model`"),
        ({"cfg": None}, "states no settings"),
        ({"model": {"w2v_encoder.proj.weight": torch.zeros(1)}}, "fine-tuned"),
    ],
)
def test_checkpoints_of_other_kinds_are_named(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        hubert_from_fairseq(write(tmp_path / "x.pt", make_encoder(), **changes))


def test_the_published_front_end_is_read_from_its_expression():
    published = conv_layers("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")
    assert published == [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('true')",
        "[(1,2,3)] * 10**9",
        "[1, 2]",
        "[]",
        "",
        "(" * 5000,
        "[(1,2,'x')]",
        "9**9**9",
        "[(0,1,1)]",
        "[(1,1,1)] * 33",
    ],
)
def test_front_ends_that_are_no_lists_are_refused(hostile):
    with pytest.raises(UserError, match="conv_feature_layers"):
        conv_layers(hostile)


@pytest.mark.parametrize(
    ("preprocessor", "normalize"),
    [(None, False), ('{"do_normalize": true}', True), ('{"do_normalize": false}', False)],
)
def test_a_folder_of_transformers_is_read(tmp_path, preprocessor, normalize):
    model, wave = make_encoder(), noise(8000)
    model.save_pretrained(tmp_path)
    if preprocessor:
        (tmp_path / "preprocessor_config.json").write_text(preprocessor)
    found, found_normalize = encoder_from(tmp_path)
    assert found_normalize is normalize
    torch.testing.assert_close(FeatureEncoder(found, 3)([wave]), FeatureEncoder(model, 3)([wave]))


def test_a_folder_that_is_no_hubert_is_named(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        hubert_from_transformers(tmp_path)
    make_encoder().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="no whole HuBERT"):
        hubert_from_transformers(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no whole HuBERT"):
        hubert_from_transformers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="bert"):
        hubert_from_transformers(tmp_path)


def test_a_name_that_cannot_be_fetched_says_what_to_give_instead():
    with pytest.raises(UserError, match="no encoder 'someone/hubert'.*give a folder"):
        hubert_from_transformers("someone/hubert")


def test_centroids_are_read_from_every_format(tmp_path):
    data = np.random.default_rng(0).normal(size=(50, 32))
    model = MiniBatchKMeans(4, n_init=1, random_state=0).fit(data)
    joblib.dump(model, tmp_path / "km.bin")
    expected = model.cluster_centers_.astype(np.float32)
    np.save(tmp_path / "km.npy", expected)
    save_file({"centroids": expected}, tmp_path / "km.safetensors")
    folder = tmp_path / "inventory"
    folder.mkdir()
    UnitInventory.create(make_encoder(), 2, kmeans_from(tmp_path / "km.bin")).save(folder)
    for source in ("km.bin", "km.npy", "km.safetensors", "inventory"):
        found = kmeans_from(tmp_path / source).centroids
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32 and found.flags.writeable


def test_files_without_centroids_are_named(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    save_file({"other": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    joblib.dump({"x": 1}, tmp_path / "dictionary.bin")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" * 30)
    (tmp_path / "empty").mkdir()
    arrays = ["flat.npy", "nan.npy", "objects.npy", "absent.npy"]
    for name in [*arrays, "other.safetensors", "broken.safetensors", "dictionary.bin", "empty"]:
        with pytest.raises(UserError, match=name.split(".")[0]):
            kmeans_from(tmp_path / name)


def test_an_inventory_is_put_together_or_opened(tmp_path):
    model = make_encoder()
    np.save(tmp_path / "km.npy", kmeans_of(5).centroids)
    encoder, kmeans = str(write(tmp_path / "x.pt", model)), str(tmp_path / "km.npy")
    made = open_inventory(encoder=encoder, layer=2, kmeans=kmeans)
    folder = tmp_path / "run" / "01_unit_extraction" / "inventory"
    folder.mkdir(parents=True)
    made.save(folder)
    assert open_inventory(tmp_path / "run").id == open_inventory(folder).id == made.id


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no units were named"),
        ({"layer": 3}, "belong to an --encoder.*give --encoder and --kmeans"),
        ({"encoder": "x.pt"}, "give --layer and --kmeans"),
        ({"encoder": "x.pt", "layer": 2}, "give --kmeans"),
    ],
)
def test_half_an_inventory_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        open_inventory(**given)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    path = str(write(tmp_path / "x.pt", make_encoder()))
    np.save(tmp_path / "km.npy", np.zeros((5, 768), np.float32))
    with pytest.raises(UserError, match="width 768 but layer 2 gives 32"):
        open_inventory(encoder=path, layer=2, kmeans=str(tmp_path / "km.npy"))
    with pytest.raises(UserError, match="layers 1 to 4, layer 11"):
        open_inventory(encoder=path, layer=11, kmeans=str(tmp_path / "km.npy"))
    with pytest.raises(UserError, match="exclude each other"):
        open_inventory(tmp_path, path, 2, str(tmp_path / "km.npy"))
    with pytest.raises(UserError, match="no unit inventory in"):
        open_inventory(tmp_path)


@pytest.fixture(scope="module")
def fixtures(reference):
    folder = reference / "fixtures" / "fairseq"
    if not folder.is_dir():
        pytest.skip(f"no outputs of fairseq in {folder}")
    return folder


def test_features_are_those_of_fairseq(fixtures):
    model, normalize = hubert_from_fairseq(fixtures / "hubert" / "tiny_mhubert.pt")
    expected = np.load(fixtures / "hubert" / "features.npz")
    wave, odd = (np.load(fixtures / "hubert" / name) for name in ("wav.npy", "wav_odd.npy"))
    assert not normalize
    for layer in (1, 2, 3, 4):
        (found,) = FeatureEncoder(model, layer)([wave])
        np.testing.assert_allclose(found, expected[f"layer{layer}"], atol=1e-5)
    # in one batch with the other, as well
    both = FeatureEncoder(model, 3)([odd, wave])
    np.testing.assert_allclose(both[0], expected["odd_layer3"], atol=1e-5)
    np.testing.assert_allclose(both[1], expected["layer3"], atol=1e-5)


def test_units_are_those_of_fairseq(fixtures, monkeypatch):
    monkeypatch.setattr(long_audio, "RELEASE_CHUNK", 16_000)
    expected = json.loads((fixtures / "kmeans" / "units.json").read_text())
    encoder = str(fixtures / "hubert" / "tiny_mhubert.pt")
    centroids = str(fixtures / "kmeans" / "tiny_L3_km16.bin")
    inventory = open_inventory(encoder=encoder, layer=3, kmeans=centroids)
    wave, odd = (np.load(fixtures / "hubert" / name) for name in ("wav.npy", "wav_odd.npy"))
    units, durations = inventory.encode(wave)
    assert units.tolist() == expected["reduced"] and durations.tolist() == expected["durations"]
    assert np.repeat(*inventory.encode(odd)).tolist() == expected["units_odd"]
    chunked, _, _ = long_audio.encode_long(inventory.feature_encoder, wave, "release")
    features = np.load(fixtures / "hubert" / "features.npz")["chunk16000_layer3"]
    np.testing.assert_allclose(chunked, features, atol=1e-5)
    units = inventory.kmeans.assign(chunked.numpy())
    assert units.tolist() == expected["units_chunk16000"]


def _npy(shape: str, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def _safetensors(**header) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def _centroids(dtype: str, shape: list, end: int) -> bytes:
    return _safetensors(centroids={"dtype": dtype, "shape": shape, "data_offsets": [0, end]})


HOSTILE_CENTROIDS = {
    "3.6 TiB.npy": _npy("(1000000, 1000000)"),
    "overflow.npy": _npy("(4611686018427387904, 4)"),
    "negative.npy": _npy("(-1, 4)"),
    "words.npy": _npy("'x'"),
    "objects.npy": _npy("(2, 4)", "|O"),
    "empty.npy": _npy("(0, 4)"),
    "header.npy": _npy("(" * 5000),
    "cut.npy": _npy("(2, 4)")[:20],
    "bf16.safetensors": _centroids("BF16", [8, 4], 64),
    "f8.safetensors": _centroids("F8_E4M3", [16, 4], 64),
    "integers.safetensors": _centroids("I64", [2, 4], 64),
    "too much.safetensors": _centroids("F32", [10**6, 10**6], 4 * 10**12),
    "other size.safetensors": _centroids("F32", [9, 4], 64),
    "another name.safetensors": _safetensors(
        c={"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    ),
    "no header.safetensors": b"\xff" * 100,
    "empty header.safetensors": (0).to_bytes(8, "little"),
    "short.safetensors": b"abc",
}


@pytest.mark.parametrize("name", HOSTILE_CENTROIDS)
def test_centroids_that_can_not_be_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE_CENTROIDS[name])
    with pytest.raises(UserError, match=name):
        kmeans_from(tmp_path / name)
    if name.endswith(".safetensors"):
        with pytest.raises(UserError, match=name):
            KMeansUnits.load(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 10**6}, {"hidden_size": 10**12}, {"conv_dim": 7}, {"conv_stride": None}]
    + [
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"conv_dim": []},
    ]
    + [{"hidden_act": "os.system"}, {"feat_extract_norm": 1}],
    ids=str,
)
def test_a_folder_of_transformers_with_a_bad_config_is_refused(tmp_path, changes):
    make_encoder().save_pretrained(tmp_path / "theirs")
    config = tmp_path / "theirs" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(UserError, match="theirs"):
        hubert_from_transformers(tmp_path / "theirs")


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../x"}}']
)
def test_a_folder_of_transformers_with_a_bad_index_is_refused(tmp_path, index):
    folder = tmp_path / "theirs"
    make_encoder().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="theirs"):
        hubert_from_transformers(folder)
