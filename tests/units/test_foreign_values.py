"""Files of others: told by their first bytes, and refused where they hold what is no number."""

import json

import joblib
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from speechgpt_lib.errors import UserError
from speechgpt_lib.units.foreign import (
    encoder_from,
    hubert_from_fairseq,
    hubert_from_transformers,
    kmeans_from,
)
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from tests.units.test_features import make_encoder
from tests.units.test_foreign import SETTINGS, kmeans_of, write

FORMATS = {  # how centroids are written, whatever the file is called
    "npy": lambda a, f: np.save(f, a),
    "npz": lambda a, f: np.savez(f, centroids=a),
    "npz of one": lambda a, f: np.savez(f, a),
    "safetensors": lambda a, f: f.write(save({"centroids": a})),
    "torch, a dictionary": lambda a, f: torch.save({"cluster_centers_": torch.tensor(a)}, f),
    "torch, a tensor": lambda a, f: torch.save(torch.tensor(a).half().float(), f),
    "torch, before 1.6": lambda a, f: torch.save(
        {"centroids": torch.tensor(a)}, f, _use_new_zipfile_serialization=False
    ),
    "joblib": lambda a, f: joblib.dump({"centroids": a}, f),
    "joblib, compressed": lambda a, f: joblib.dump(a, f, compress=3),
}


@pytest.mark.parametrize("name", ["km.npy", "km.pt", "km.bin", "km.safetensors", "km"])
@pytest.mark.parametrize("written", FORMATS)
def test_a_format_is_told_by_its_first_bytes(tmp_path, written, name):
    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    with open(tmp_path / name, "wb") as file:
        FORMATS[written](expected, file)
    np.testing.assert_array_equal(kmeans_from(tmp_path / name).centroids, expected)


def test_a_file_of_another_kind_is_called_what_it_is(tmp_path):
    for start, kind in ((b"GGUF", "gguf"), (b"\x89HDF\r\n", "hdf5"), (b"RIFF....WAVE", "sound")):
        (tmp_path / "km.npy").write_bytes(start + b"\0" * 100)
        with pytest.raises(UserError, match=f"kind {kind}"):
            kmeans_from(tmp_path / "km.npy")
        (tmp_path / "x.pt").write_bytes(start + b"\0" * 100)
        with pytest.raises(UserError, match=f"kind {kind}, expected a PyTorch checkpoint"):
            encoder_from(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(save({"a": np.zeros(2, np.float32)}))
    with pytest.raises(UserError, match="kind safetensors: give its folder"):
        encoder_from(tmp_path / "x.pt")
    write(tmp_path / "hubert.bin", make_encoder())
    assert encoder_from(tmp_path / "hubert.bin")[0].config.hidden_size == 32


def test_a_torch_file_of_centroids_as_found_in_use(reference):
    path = reference / "faults" / "models" / "kmeans_torch.pt"
    if not path.is_file():
        pytest.skip("the folder of reference material has no faults/models")
    assert kmeans_from(path).centroids.shape == (16, 32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 1e30])
def test_centroids_that_are_no_numbers_here_are_refused(tmp_path, value):
    table = np.ones((4, 3))
    table[2, 1] = value
    for name in ("joblib", "npy", "npz"):
        with open(tmp_path / "km", "wb") as file:
            FORMATS[name](table, file)
        with pytest.raises(UserError, match="finite|too large"):
            kmeans_from(tmp_path / "km")
    with pytest.raises(UserError, match="NaN, infinite, or too large"):
        KMeansUnits(table.astype(np.float64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    model = make_encoder()
    with torch.no_grad():
        model.encoder.layers[1].attention.k_proj.weight[3, 3] = value
    found = "1 of 1024 numbers of encoder.layers.1.*k_proj.weight are NaN or infinite"
    with pytest.raises(UserError, match=found):
        hubert_from_fairseq(write(tmp_path / "x.pt", model))
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(UserError, match=found):
        hubert_from_transformers(tmp_path / "folder")
    UnitInventory.create(model, 2, kmeans_of(5)).save(tmp_path / "inventory")
    with pytest.raises(UserError, match=found):
        UnitInventory.load(tmp_path / "inventory")


@pytest.mark.parametrize("value", ["false", "true", "no", [], {}, 2, None])
def test_what_is_neither_true_nor_false_is_refused(tmp_path, value):
    make_encoder().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": value}))
    with pytest.raises(UserError, match="do_normalize is .*, expected true or false"):
        hubert_from_transformers(tmp_path)
    for key in ("conv_bias", "layer_norm_first"):
        with pytest.raises(UserError, match=f"{key} is .*, expected true or false"):
            hubert_from_fairseq(write(tmp_path / "x.pt", make_encoder(), SETTINGS | {key: value}))


def test_sound_of_another_rate_is_refused(tmp_path):
    make_encoder().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
    with pytest.raises(UserError, match="sampling_rate is 8000, sound has 16000 here"):
        hubert_from_transformers(tmp_path)
