"""A trained model speaks: the same in any batch, within limits, and after a trip to disk."""

import dataclasses

import numpy as np
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from tests.text_to_unit.conftest import UNIT_COUNT

TEXTS = [
    "the dog is red",
    "a",
    "where is the horse",
    "two birds and a dog",
    "red",
    "the old dog and the old horse and two birds",
]


@pytest.fixture
def short_limits(trained):
    """The model with so small a length limit that some answers reach it."""
    model = dataclasses.replace(trained[0], rate=0.1)
    lengths = [len(units) for units in model.generate(TEXTS)]
    assert max(lengths) > min(lengths)
    assert any(length > 16 for length in map(len, trained[0].generate(TEXTS)))
    return model


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_is_one_by_one(trained, beams):
    model = trained[0]
    alone = [model.generate([text], beams)[0].tolist() for text in TEXTS]
    for size in (2, 4, 32):
        assert [units.tolist() for units in model.generate(TEXTS, beams, batch_size=size)] == alone


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_is_one_by_one_where_answers_are_cut_off(short_limits, beams):
    alone = [short_limits.generate([text], beams)[0].tolist() for text in TEXTS]
    assert [units.tolist() for units in short_limits.generate(TEXTS, beams)] == alone
    for units, text in zip(alone, TEXTS, strict=True):
        assert len(units) <= 16 + 0.2 * (len(text) + 2)


def test_answers_are_merged_units_and_never_empty(trained):
    for units in trained[0].generate(TEXTS):
        assert units.dtype == np.int64 and len(units) > 0
        assert units.min() >= 0 and units.max() < UNIT_COUNT
        assert (units[1:] != units[:-1]).all()


def test_answers_come_in_the_order_of_the_texts(trained):
    model = trained[0]
    backwards = model.generate(TEXTS[::-1])[::-1]
    assert [u.tolist() for u in backwards] == [u.tolist() for u in model.generate(TEXTS)]
    assert model.generate([]) == []


def test_save_and_load(trained, tmp_path):
    model = trained[0]
    model.save(tmp_path / "model")
    loaded = TextToUnit.load(tmp_path / "model", "feed")
    assert (loaded.inventory, loaded.rate) == ("feed", model.rate)
    for ours, theirs in zip(model.generate(TEXTS), loaded.generate(TEXTS), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_units_of_another_inventory_are_refused(trained, tmp_path):
    trained[0].save(tmp_path)
    with pytest.raises(UserError, match="inventory feed but the units are of inventory cafe"):
        TextToUnit.load(tmp_path, "cafe")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="no text-to-unit model in .* run notebook 04"):
        TextToUnit.load(tmp_path)


def test_settings_of_another_version_are_refused(trained, tmp_path):
    trained[0].save(tmp_path)
    facts = read_json(tmp_path / "text_to_unit.json")
    facts["settings"]["wings"] = 2
    write_json(tmp_path / "text_to_unit.json", facts)
    message = "does not describe a text-to-unit model .*wings.*: run its step again"
    with pytest.raises(UserError, match=message):
        TextToUnit.load(tmp_path)


def test_missing_weights(trained, tmp_path):
    trained[0].save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors are missing"):
        TextToUnit.load(tmp_path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a dog", " "], "no text to speak"),
        (["a dog?"], r"never seen in training: \?"),
        (["a dog " * 200], "too long.*split it into sentences"),
        ("a dog", "list of texts"),
    ],
)
def test_texts_that_cannot_be_spoken(trained, texts, message):
    with pytest.raises(UserError, match=message):
        trained[0].generate(texts)


@pytest.mark.parametrize("options", [{"beams": 0}, {"batch_size": 0}])
def test_impossible_options(trained, options):
    with pytest.raises(UserError, match="must be 1 or more"):
        trained[0].generate(["a dog"], **options)
