"""The real fairseq beside our own reader: the same features and units (needs `make fairseq`)."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.units.fairseq_backend import FairseqEncoder, import_fairseq, refuse_code
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.foreign import hubert_from_fairseq
from speechgpt_lib.units.long_audio import encode_long
from tests.foreign.hostile import Hostile
from tests.units.test_features import noise
from tests.units.test_foreign import SETTINGS


def checkpoint(path, fairseq, normalize=False, **changes):
    """A HuBERT that fairseq builds, with spread weights, saved as its trainer does."""
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    settings = SETTINGS | {"encoder_layers": 3, "conv_pos": 128, "conv_pos_groups": 16}
    settings |= {"final_dim": 8, "untie_final_proj": True, **changes}
    settings |= {"required_seq_len_multiple": 2, "label_rate": 50.0}
    config = HubertConfig(**{key: value for key, value in settings.items() if key != "_name"})
    dictionary = fairseq.data.dictionary.Dictionary()
    for k in range(10):
        dictionary.add_symbol(str(k))
    torch.manual_seed(0)
    task = {"data": "data", "labels": ["km"], "label_dir": "data", "label_rate": 50.0}
    task |= {"normalize": normalize}
    model = HubertModel(config, HubertPretrainingConfig(**task), [dictionary])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    task |= {"_name": "hubert_pretraining", "sample_rate": 16000}
    history = {"criterion_name": "HubertCriterion", "optimizer_name": "FairseqAdam"}
    history |= {"lr_scheduler_state": {}, "num_updates": 0}
    state = {
        "args": None,
        "cfg": {"model": settings, "task": task, "common": {}},
        "model": model.state_dict(),
        "task_state": {"dictionaries": [dictionary]},
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("normalize", "changes"),
    [
        (False, {}),
        (True, {"layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True}),
        (False, {"conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"}),
    ],
    ids=["base", "large", "no projection"],
)
def test_our_reader_and_fairseq_agree_on_every_layer(fairseq, tmp_path, normalize, changes):
    path = checkpoint(tmp_path / "x.pt", fairseq, normalize, **changes)
    model, found_normalize = hubert_from_fairseq(path)
    assert found_normalize is normalize
    for layer in (1, 2, 3):
        theirs = FairseqEncoder(path, layer)
        for samples in (16_000, 16_500, 400, 719):
            (ours,) = FeatureEncoder(model, layer, normalize=normalize)([noise(samples)])
            np.testing.assert_allclose(ours, theirs.features(noise(samples)), atol=1e-5)


def test_units_and_release_chunks_agree(fairseq, tmp_path, monkeypatch):
    monkeypatch.setattr("speechgpt_lib.units.long_audio.RELEASE_CHUNK", 16_000)
    path, wave = checkpoint(tmp_path / "x.pt", fairseq), noise(40_399)
    model, _ = hubert_from_fairseq(path)
    theirs = FairseqEncoder(path, 2)
    ours = encode_long(FeatureEncoder(model, 2), wave, "release")[0].numpy()
    np.testing.assert_allclose(ours, theirs.features(wave, chunk=16_000), atol=1e-5)
    centroids = ours[::7].copy()
    (single,) = FeatureEncoder(model, 2)([wave])
    units = (single[:, None] - torch.from_numpy(centroids)).square().sum(-1).argmin(1)
    assert theirs.units(wave, centroids).tolist() == units.tolist()


def test_the_fixture_gives_what_fairseq_gave(fairseq, reference):
    folder = reference / "fixtures" / "fairseq"
    encoder = FairseqEncoder(folder / "hubert" / "tiny_mhubert.pt", 3)
    wave = np.load(folder / "hubert" / "wav.npy")
    centroids = np.load(folder / "kmeans" / "cluster_centers.npy")
    features = np.load(folder / "hubert" / "features.npz")["layer3"]
    np.testing.assert_allclose(encoder.features(wave), features, atol=1e-5)
    units = json.loads((folder / "kmeans" / "units.json").read_text())["units"]
    assert encoder.units(wave, centroids).tolist() == units


def test_mistakes_are_named(fairseq, tmp_path):
    path = checkpoint(tmp_path / "x.pt", fairseq)
    with pytest.raises(UserError, match="layers 1 to 3, layer 4"):
        FairseqEncoder(path, 4)
    with pytest.raises(UserError, match="too short"):
        FairseqEncoder(path, 1).features(noise(399))
    with pytest.raises(UserError, match="width 32 but the centroids have 7"):
        FairseqEncoder(path, 1).units(noise(4000), np.zeros((3, 7), np.float32))


def test_code_never_reaches_fairseqs_loader(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model": Hostile(marker)}, tmp_path / "new.pt")
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"model": Hostile(marker)}, tmp_path / "old.pt", **old)
    for name, words in (("new.pt", "asks to run .*system"), ("old.pt", "before PyTorch 1.6")):
        with pytest.raises(UserError, match=words):
            refuse_code(tmp_path / name)
    assert not marker.exists()


def test_without_fairseq_the_command_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    import_fairseq.cache_clear()
    with pytest.raises(UserError, match="make fairseq"):
        import_fairseq()
