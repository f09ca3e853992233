"""The joint vocabulary, and a model that starts out reading from left to right."""

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.text_to_unit.model import (
    END,
    FIRST_UNIT,
    PAD,
    PairLoss,
    PairVocabulary,
    build_model,
    pad_rows,
    train_tokenizer,
)
from tests.text_to_unit.conftest import UNIT_COUNT, settings


@pytest.fixture
def vocabulary():
    return PairVocabulary(train_tokenizer(["the dog", "a cat"], 0), UNIT_COUNT)


def test_units_are_ids_by_arithmetic(vocabulary):
    units = np.array([0, 19, 7])
    ids = vocabulary.encode_units(units)
    assert ids == [FIRST_UNIT, FIRST_UNIT + 19, FIRST_UNIT + 7, END]
    assert vocabulary.units_in(ids).tolist() == units.tolist()
    assert vocabulary.units_in([PAD, *vocabulary.encode_text("a cat")]).size == 0


def test_text_is_spelled_when_no_pieces_are_asked_for(vocabulary):
    # Besides: a blank before the first word, the end marker.
    assert len(vocabulary.encode_text("the cat")) == len("the cat") + 2
    assert vocabulary.encode_text(" the\n cat ") == vocabulary.encode_text("the cat")
    pieces = vocabulary.tokenizer.get_vocab_size()
    assert max(vocabulary.encode_text("the dog a cat")) < FIRST_UNIT + UNIT_COUNT + pieces


def test_more_pieces_make_shorter_texts(vocabulary):
    words = PairVocabulary(train_tokenizer(["the dog", "a cat", "the dog"], 60), UNIT_COUNT)
    assert len(words.encode_text("the dog")) < len(vocabulary.encode_text("the dog"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no text"), (" \n", "no text"), ("the Dog!", "never seen in training: ! D")],
)
def test_texts_that_cannot_be_spoken(vocabulary, text, message):
    with pytest.raises(UserError, match=message):
        vocabulary.encode_text(text)


@pytest.mark.parametrize("unit", [-1, UNIT_COUNT])
def test_units_out_of_range(vocabulary, unit):
    with pytest.raises(UserError, match=f"unit id {unit} is out of range"):
        vocabulary.encode_units(np.array([3, unit]))


def test_the_first_guess_is_an_even_pace(vocabulary):
    """Before training unit position t scores highest with text position t / units_per_piece."""
    model = build_model(settings(1, hidden_size=64), vocabulary, 2.0, seed=0)
    attention = model.model.decoder.layers[0].encoder_attn
    assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
    table_of_text = model.model.encoder.embed_positions.weight
    table_of_units = model.model.decoder.embed_positions.weight
    nearest = (table_of_units[:40:2] @ table_of_text[:40].T).argmax(1)
    assert nearest.tolist() == list(range(20))
    assert not table_of_text.requires_grad


def test_padding_changes_no_loss(vocabulary):
    model = PairLoss(build_model(settings(1), vocabulary, 2.0, seed=0)).eval()
    sources = [vocabulary.encode_text(text) for text in ("a", "the dog")]
    targets = [vocabulary.encode_units(np.array(units)) for units in ([1], [2, 3, 4, 5])]
    with torch.no_grad():
        together = model(pad_rows(sources, PAD), pad_rows(targets, PAD))
        pairs = zip(sources, targets, strict=True)
        alone = [model(torch.tensor([s]), torch.tensor([t])) for s, t in pairs]
    assert together[0].item() == pytest.approx(sum(loss.item() for loss, _, _ in alone), rel=1e-5)
    assert together[1] == 7
    assert together[2] == sum(right for _, _, right in alone)
