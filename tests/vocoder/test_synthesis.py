from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.vocoder import synthesis
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.synthesis import Vocoder


def test_the_wave_is_exactly_as_long_as_its_durations(vocoder):
    wave = vocoder.synthesize([1, 4, 2], [3, 1, 5])
    assert wave.dtype == np.float32
    assert wave.shape == (9 * 320,)
    assert np.abs(wave).max() < 1
    assert vocoder.synthesize([1, 4, 2], [3, 1, 5], speed=0.5).shape == (18 * 320,)


def test_predicted_durations_are_used_when_none_are_given(vocoder):
    with torch.no_grad():
        vocoder.durations.proj.bias += 1.5
    units = np.array([1, 4, 2, 0])
    durations = vocoder.predict_durations(units)
    assert durations.dtype == np.int64 and (durations >= 1).all() and durations.sum() > 4
    assert np.array_equal(vocoder.synthesize(units), vocoder.synthesize(units, durations))


def test_speaking_twice_sounds_the_same(vocoder):
    torch.manual_seed(1)
    first = vocoder.synthesize([3, 1, 5, 0])
    torch.manual_seed(2)
    assert np.array_equal(first, vocoder.synthesize([3, 1, 5, 0]))


def test_units_of_zero_frames_are_skipped(vocoder):
    skipping = vocoder.synthesize([1, 3, 2], [2, 0, 4])
    assert np.array_equal(skipping, vocoder.synthesize([1, 2], [2, 4]))


def test_what_was_saved_sounds_the_same_when_loaded(vocoder, tmp_path):
    folder = tmp_path / "vocoder"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}")  # what else lies in a step's folder stays
    vocoder.save(folder)
    vocoder.save(folder)  # again, over what is there
    files = ["durations.safetensors", "generator.safetensors", "metrics.jsonl", "vocoder.json"]
    assert sorted(p.name for p in folder.iterdir()) == files
    loaded = Vocoder.load(folder, inventory="inventory-a")
    assert loaded.inventory == "inventory-a"
    assert loaded.settings == vocoder.settings
    assert loaded.unit_count == 6
    assert np.array_equal(vocoder.synthesize([1, 4, 2]), loaded.synthesize([1, 4, 2]))


def test_units_of_another_inventory_are_refused(vocoder, tmp_path):
    vocoder.save(tmp_path / "vocoder")
    with pytest.raises(UserError, match=r"inventory-a.*inventory-b"):
        Vocoder.load(tmp_path / "vocoder", inventory="inventory-b")
    with pytest.raises(UserError, match=r"inventory-a.*inventory-b"):
        vocoder.synthesize([1, 2], inventory="inventory-b")
    assert len(vocoder.synthesize([1, 2], [1, 1], inventory="inventory-a")) == 640


@pytest.mark.parametrize(
    ("units", "options", "words"),
    [
        ([], {}, "no units"),
        ([1, 6], {}, "unit id 6 is out of range"),
        ([-1], {}, "unit id -1 is out of range"),
        ([[1, 2]], {}, "one row"),
        ([1.5], {}, "whole numbers"),
        ([1, 2], {"durations": [1]}, "one duration a unit"),
        ([1, 2], {"durations": [1, -1]}, "0 or more"),
        ([1, 2], {"durations": [0, 0]}, "all durations are 0"),
        ([1, 2], {"durations": [1.5, 2.0]}, "whole numbers"),
        ([1, 2], {"speed": 0.0}, "speed"),
        ([1, 2], {"durations": [180_000, 1]}, "the limit is 3600 s"),
        ([1, 2], {"speaker": "anna"}, "single voice"),
    ],
)
def test_bad_units_get_one_clear_line(vocoder, units, options, words):
    with pytest.raises(UserError, match=words) as caught:
        vocoder.synthesize(units, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_s", [0.0, 0.3, 60.0])
def test_a_batch_sounds_as_its_utterances_one_by_one(vocoder, batch_s):
    """The same length and samples in any batch, whoever gave the durations, at any speed."""
    with torch.no_grad():
        vocoder.durations.proj.weight.mul_(4)
        vocoder.durations.proj.bias += 1
        for name, parameter in vocoder.generator.named_parameters():
            noise = 0.1 * torch.randn_like(parameter) if name.endswith("bias") else 3 * parameter
            parameter.copy_(noise)
    rng = np.random.default_rng(0)
    utterances = [rng.integers(0, 6, n) for n in (3, 17, 1, 8, 8, 30)]
    durations = [rng.integers(0, 4, len(u)) + (np.arange(len(u)) == 0) for u in utterances]
    for given in (None, durations):
        for speed in (1.0, 1.7):
            together = vocoder.synthesize_many(utterances, given, speed, batch_s=batch_s)
            for i, units in enumerate(utterances):
                alone = vocoder.synthesize(units, None if given is None else given[i], speed)
                assert alone.std() > 1e-3 and together[i].shape == alone.shape
                assert np.abs(together[i] - alone).max() <= 1e-4


def test_batches_stay_within_their_budget():
    lengths = [10, 400, 50, 50, 60, 700, 5]
    batches = synthesis.plan_batches(lengths, batch_s=3.0)  # 150 frames
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 150 for b in batches)
    assert batches == [[5], [1], [4, 2], [3, 0, 6]]
    assert synthesis.plan_batches([], 1.0) == []


def test_nobody_to_speak_to_is_nothing_to_say(vocoder):
    assert vocoder.synthesize_many([]) == []
    with pytest.raises(UserError, match="no units"):
        vocoder.synthesize_many([[1], []])
    with pytest.raises(UserError, match="2 utterances but durations for 1"):
        vocoder.synthesize_many([[1], [2]], [[3]])


def test_long_speech_is_spoken_piece_by_piece_and_sounds_the_same(vocoder):
    units = np.random.default_rng(0).integers(0, 6, synthesis.PIECE + 77)
    with torch.inference_mode():
        whole = vocoder.generator(torch.from_numpy(units)[None])[0].numpy()
    assert np.abs(vocoder.synthesize(units, np.ones_like(units)) - whole).max() <= 1e-5


def test_half_precision_is_close_and_unknown_precision_refused(vocoder, tmp_path):
    vocoder.save(tmp_path)
    half = Vocoder.load(tmp_path, precision="bf16")
    a, b = vocoder.synthesize([1, 4, 2], [5, 5, 5]), half.synthesize([1, 4, 2], [5, 5, 5])
    assert b.dtype == np.float32 and not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.05 * np.abs(a).max() + 0.01
    streamed = np.concatenate(list(half.stream().run([1, 4, 2, 0])))
    assert len(streamed) == len(half.synthesize([1, 4, 2, 0]))
    half.save(tmp_path / "again")  # the file has full precision in form
    assert Vocoder.load(tmp_path / "again").unit_count == 6
    with pytest.raises(UserError, match="precision"):
        Vocoder.load(tmp_path, precision="fp8")


def test_a_damaged_folder_is_refused(vocoder, tmp_path):
    folder = tmp_path / "vocoder"
    with pytest.raises(UserError, match="is missing"):
        Vocoder.load(folder)
    vocoder.save(folder)
    facts = json.loads((folder / "vocoder.json").read_text())

    wide = {"settings": facts["settings"] | {"channels": "wide"}}
    (folder / "vocoder.json").write_text(json.dumps(facts | wide))
    with pytest.raises(UserError, match="does not describe a vocoder") as caught:
        Vocoder.load(folder)
    assert "\n" not in str(caught.value)

    (folder / "vocoder.json").write_text(json.dumps(facts | {"unit_count": 7}))
    with pytest.raises(UserError, match="expects"):
        Vocoder.load(folder)

    (folder / "vocoder.json").write_text(json.dumps(facts))
    (folder / "generator.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        Vocoder.load(folder)


def test_a_save_that_was_cut_off_leaves_no_vocoder(vocoder, tmp_path, monkeypatch):
    vocoder.save(tmp_path)
    cut_off = lambda module, path: path.write_bytes(b"half") and 1 / 0  # noqa: E731
    monkeypatch.setattr(synthesis, "save_module", cut_off)
    with pytest.raises(ZeroDivisionError):
        vocoder.save(tmp_path)
    assert "half" not in {p.read_bytes()[:4].decode("latin-1") for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="is missing"):
        Vocoder.load(tmp_path)


def test_parts_of_different_size_do_not_go_together(tiny):
    with pytest.raises(UserError, match="6 units but the duration predictor 7"):
        Vocoder(UnitGenerator(6, tiny), DurationPredictor(7, 8), "inventory-a", tiny)
