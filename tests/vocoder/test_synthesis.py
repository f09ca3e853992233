from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.vocoder import synthesis
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
    assert np.array_equal(vocoder.synthesize([1, 3, 2], [2, 0, 4]), vocoder.synthesize([1, 2], [2, 4]))


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
        ([1, 2], {"durations": [6000, 1]}, "the limit is 120 s"),
    ],
)
def test_bad_units_get_one_clear_line(vocoder, units, options, words):
    with pytest.raises(UserError, match=words) as caught:
        vocoder.synthesize(units, **options)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_refused(vocoder, tmp_path):
    folder = tmp_path / "vocoder"
    with pytest.raises(UserError, match="is missing"):
        Vocoder.load(folder)
    vocoder.save(folder)
    facts = json.loads((folder / "vocoder.json").read_text())

    (folder / "vocoder.json").write_text(json.dumps(facts | {"settings": facts["settings"] | {"channels": "wide"}}))
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
    monkeypatch.setattr(synthesis, "save_module", lambda module, path: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vocoder.save(tmp_path)
    assert "half" not in {p.read_bytes()[:4].decode("latin-1") for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="is missing"):
        Vocoder.load(tmp_path)


def test_parts_of_different_size_do_not_go_together(tiny):
    from speechgpt_lib.vocoder.durations import DurationPredictor
    from speechgpt_lib.vocoder.generator import UnitGenerator

    with pytest.raises(UserError, match="6 units but the duration predictor 7"):
        Vocoder(UnitGenerator(6, tiny), DurationPredictor(7, 8), "inventory-a", tiny)
