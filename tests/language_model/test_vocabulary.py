"""Ids by arithmetic, text that can't forge a marker, and expansion that disturbs nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import CHAIN_FORMATS, MARKERS, chain_row
from speechgpt_lib.language_model.generation import parse_chain
from speechgpt_lib.language_model.model import expand_model, load_model, save_model
from speechgpt_lib.language_model.vocabulary import BEGIN, Vocabulary
from tests.builders import tiny_language_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary(20)
words = st.lists(
    st.sampled_from("the dog is red anna plus two".split()), min_size=1, max_size=8
).map(" ".join)
units = st.lists(st.integers(0, 19), min_size=1, max_size=12).map(np.array)
hostile = st.lists(
    st.sampled_from([*MARKERS, "<sosp>", "<eosp>", "<12>", "<pad>", "a", " ", "é", "漢"]),
    max_size=8,
).map("".join)


def test_units_and_markers_follow_the_text_by_arithmetic() -> None:
    v = VOCABULARY
    assert v.encode_units(np.array([0, 19]))[1:3] == [v.text_size, v.text_size + 19]
    assert [
        v.marker(m) for m in ("<sosp>", "<eosp>", "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")
    ] == list(range(v.text_size + 20, v.text_size + 26))
    assert v.size == v.text_size + 20 + 2 + len(MARKERS)
    assert v.name(v.text_size + 12) == "<12>" and v.name(v.marker("[ta]")) == "[ta]"
    with pytest.raises(UserError, match="out of range"):
        v.encode_units(np.array([20]))


@given(hostile)
def test_text_never_becomes_a_marker_or_a_unit(text: str) -> None:
    assert all(2 < token < VOCABULARY.text_size for token in VOCABULARY.encode_text(text))


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    stripped = text.strip()
    assert VOCABULARY.decode_text(VOCABULARY.encode_text(text)) == stripped


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CHAIN_FORMATS), words, words, units, units)
def test_parsing_a_chain_undoes_formatting_it(
    name: str, question: str, answer: str, asked: np.ndarray, spoken: np.ndarray
) -> None:
    prompt, ids = VOCABULARY.encode_row(chain_row(name, question, answer, asked, spoken))
    chain = parse_chain(ids, VOCABULARY, name)
    assert prompt[0] == BEGIN and chain.wellformed and chain.ta == answer
    assert chain.tq == (question if name.startswith("speech") else "")
    assert (chain.ua.tolist() == spoken.tolist()) if name.endswith("speech") else chain.ua is None


@given(hostile.filter(str.strip), words, units)
def test_content_that_contains_markers_stays_content(
    question: str, answer: str, asked: np.ndarray
) -> None:
    _, ids = VOCABULARY.encode_row(chain_row("speech_text", question, answer, asked))
    chain = parse_chain(ids, VOCABULARY, "speech_text")
    assert (
        chain.wellformed
        and chain.tq == question.strip().removesuffix(";").strip()
        and chain.ta == answer
    )


def test_broken_chains_are_seen() -> None:
    v = VOCABULARY
    _, good = v.encode_row(chain_row("speech_speech", "why", "so", np.array([1]), np.array([2, 3])))
    assert parse_chain(good, v, "speech_speech").wellformed
    for broken in (
        good[:-1],
        good[1:],
        [*good[:-1], v.marker("[ta]"), good[-1]],
        [i for i in good if i != v.marker("<eosp>")],
        [],
    ):
        assert not parse_chain(broken, v, "speech_speech").wellformed
    assert not parse_chain(good, v, "speech_text").wellformed


def test_expanding_twice_is_expanding_once_and_other_units_are_refused() -> None:
    assert VOCABULARY.expand(20, "test") == VOCABULARY
    with pytest.raises(UserError, match="already holds"):
        VOCABULARY.expand(21, "test")


def test_expansion_keeps_old_logits_and_ties_and_saves(tmp_path: Path) -> None:
    before = tiny_vocabulary(0)
    after = before.expand(20, "inv")
    model = tiny_language_model(before)
    ids = torch.tensor([[1, *before.encode_text("the big dog is red")]])
    with torch.inference_mode():
        old = model(ids).logits
    expand_model(model, before, after, seed=0)
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits[..., : before.size], old, atol=1e-6)
    table = model.get_input_embeddings().weight
    assert model.lm_head.weight is table and len(table) == after.size
    assert len(torch.unique(table[before.size :], dim=0)) == after.size - before.size
    save_model(model, after, tmp_path / "m")
    loaded, vocabulary = load_model(tmp_path / "m")
    assert vocabulary.inventory == "inv" and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="two runs"):
        expand_model(tiny_language_model(before), after, Vocabulary(before.tokenizer, 30, "y"), 0)


def test_before_it_is_expanded_there_are_no_units_and_markers() -> None:
    vocabulary = tiny_vocabulary(units=0)
    for ask in (
        lambda: vocabulary.marker("<sosp>"),
        lambda: vocabulary.encode_units(np.array([1])),
    ):
        with pytest.raises(UserError, match="no units and markers yet: expand it.*notebook 05"):
            ask()
