"""Our search finds what the library's finds, for both kinds of model, at the limit too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.instructions import _by_library
from speechgpt_lib.text_to_unit.beam_search import Search, beam_search
from speechgpt_lib.units.sequence import merge

TEXTS = [
    "the dog is red",
    "a",
    "where is the horse",
    "two birds and a dog",
    "red",
    "the old dog and the old horse and two birds",
]


def test_hypotheses_are_the_librarys(trained) -> None:
    model = dataclasses.replace(trained[0], rate=None, longest=80)
    for text, units in zip(TEXTS, model.generate(TEXTS, beams=5), strict=True):
        assert units.tolist() == _by_library(model, text).tolist()


def test_one_beam_takes_the_likeliest(trained) -> None:
    """Step by step, without a cache."""
    model, vocabulary = trained[0], trained[0].vocabulary
    units = slice(vocabulary.first_unit, vocabulary.first_unit + vocabulary.unit_count)
    for text in TEXTS[:3]:
        source, ids = torch.tensor([vocabulary.encode_text(text)]), [vocabulary.begin]
        limit = model._limit(source.shape[1])
        with torch.inference_mode():
            while len(ids) <= limit:
                logits = model.model(
                    input_ids=source, decoder_input_ids=torch.tensor([ids]), use_cache=False
                ).logits[0, -1]
                allowed = torch.full_like(logits, -torch.inf)
                allowed[units] = logits[units]
                if len(ids) > 1:
                    allowed[vocabulary.end] = logits[vocabulary.end]
                if (token := int(allowed.argmax())) == vocabulary.end:
                    break
                ids.append(token)
        expected = merge(vocabulary.units_in(ids))[0]
        assert model.generate([text], beams=1)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_limits_are_kept_by_each_text(trained, beams) -> None:
    model = trained[0]
    sources = torch.tensor([model.vocabulary.encode_text("the dog is red")] * 3)
    found = beam_search(model.model, model.vocabulary, sources, [1, 2, 50], beams)
    assert [len(ids) for ids in found][:2] == [1, 2] and len(found[2]) > 2
    alone = beam_search(model.model, model.vocabulary, sources[:1], [50], beams)
    assert found[2] == alone[0]


def test_the_books_of_a_search() -> None:
    """Two beams over three tokens, by hand: 9 ends a hypothesis."""
    search = Search(10, [0.0, -np.inf], [[], []])
    search.advance([(-1.0, 0, 4), (-2.0, 0, 5), (-3.0, 0, 9), (-np.inf, 1, 4)], 9)
    assert search.rows == [[4], [5]] and not search.finished  # an end below the beams is none
    search.advance([(-1.5, 1, 6), (-1.6, 0, 9), (-1.7, 0, 7), (-2.0, 1, 4)], 9)
    assert search.finished == [(-0.8, [4])] and search.parents == [1, 0]
    search.advance([(-1.8, 0, 9), (-2.5, 1, 9), (-2.6, 1, 4), (-3.0, 0, 4)], 9)
    assert search.finished[1] == (-1.8 / 3, [5, 6]) and search.is_done()


def test_other_models_are_not_searched(trained) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=10, **shape))
    with pytest.raises(TypeError, match="T5"):
        beam_search(model, trained[0].vocabulary, torch.ones(1, 1, dtype=torch.long), [3], 2)
