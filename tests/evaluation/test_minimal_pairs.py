"""Scores of minimal pairs: how they become a share, and a run's models on a set in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.corpora.minimal_pairs import MinimalPair
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.minimal_pairs import (
    encode_recordings,
    load_recordings,
    names_of,
    pair_accuracy,
    save_recordings,
)
from tests.builders import noise, tiny_inventory


def test_voices_of_an_item_are_averaged_first() -> None:
    pairs = [
        MinimalPair("a", "b", "1", "x"),
        MinimalPair("c", "d", "1", "x"),
        MinimalPair("e", "f", "2", "y"),
    ]
    found = pair_accuracy(pairs, {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": 2.0, "f": -2.0})
    assert (found["all"]["value"], found["all"]["n"]) == (0.75, 2)
    assert found["x"]["value"] == 0.5 and found["y"]["value"] == 1.0


def test_equally_likely_ones_count_a_half() -> None:
    found = pair_accuracy([MinimalPair("a", "b", "1", "")], {"a": 3.0, "b": 3.0})
    assert found == {"all": {"value": 0.5, "n": 1, "low": 0.5, "high": 0.5}}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for k in range(3):
        write_audio(tmp_path / f"{k}.wav", 0.3 * noise(0.3 + 0.1 * k, k))
    return tmp_path


def test_units_are_those_of_one_recording_at_a_time(recordings: Path, tmp_path: Path) -> None:
    inventory = tiny_inventory()
    names = names_of([MinimalPair("0.wav", "1.wav", "", ""), MinimalPair("0.wav", "2.wav", "", "")])
    assert names == ["0.wav", "1.wav", "2.wav"]
    found = encode_recordings(recordings, names, inventory)
    for name, units in found.items():
        assert np.array_equal(units, inventory.encode(read_audio(recordings / name))[0])
    save_recordings(tmp_path / "units", found, inventory.id)
    loaded = load_recordings(tmp_path / "units", inventory.id)
    assert list(loaded) == names
    assert all(np.array_equal(loaded[name], found[name]) for name in names)
    with pytest.raises(UserError, match="made for unit inventory"):
        load_recordings(tmp_path / "units", "another")


def test_a_silent_recording_is_named(recordings: Path) -> None:
    write_audio(recordings / "1.wav", np.zeros(8000, np.float32))
    with pytest.raises(UserError, match=r"1\.wav can't be used \(.*silent"):
        encode_recordings(recordings, ["0.wav", "1.wav"], tiny_inventory())
