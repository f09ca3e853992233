"""Documents of the lab world: what they say, what is learned from them, and nothing held out."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.world import BACKGROUND, SEPARATOR, documents


def joined(document) -> str:
    return " ".join(piece.text for piece in document)


def test_documents_are_a_function_of_the_generator() -> None:
    first = documents(random.Random(1), 50)
    assert first == documents(random.Random(1), 50) != documents(random.Random(2), 50)
    assert len(first) == 50 and documents(random.Random(1), 0) == []


@pytest.mark.parametrize("curriculum", [False, True])
def test_nothing_held_out_is_said(curriculum: bool) -> None:
    questions = 0
    for document in documents(random.Random(0), 1500, curriculum):
        pieces = [piece.text for piece in document]
        assert not world.unknown_words(joined(document).replace(SEPARATOR, ""))
        if SEPARATOR in pieces and pieces.count(SEPARATOR) == 1:
            questions += 1
            assert not world.is_held_out(pieces[0])
        if len(pieces) == 1:
            assert not world.is_held_out(pieces[0])
    assert questions > 300


def test_only_what_can_be_foreseen_counts_fully() -> None:
    for document in documents(random.Random(0), 500):
        weights = {piece.weight for piece in document}
        assert weights <= {0.0, BACKGROUND, 1.0}
        assert all(piece.last in (None, 1.0) for piece in document)
        if SEPARATOR in {piece.text for piece in document}:
            answers = [b for a, b in itertools.pairwise(document) if a.text == SEPARATOR]
            assert all(a.weight == 1.0 or a.last == 1.0 for a in answers)


def test_a_curriculum_has_look_ups_and_echoes_only() -> None:
    found = Counter()
    for document in documents(random.Random(0), 400, curriculum=True):
        asks = SEPARATOR in {piece.text for piece in document}
        found["look-up" if asks else "echo"] += 1
        assert len(document) > 2 and document[0].weight == 0.0
    assert min(found.values()) > 150


def test_an_echo_repeats_its_own_words() -> None:
    for document in documents(random.Random(0), 200, curriculum=True):
        if SEPARATOR in {piece.text for piece in document}:
            continue
        told = Counter(
            joined([p for p in document if p.weight == 0.0][: _chunks(document)]).split()
        )
        said = Counter(joined(document).split())
        assert set(said.values()) == {4} and set(said) == set(told)


def _chunks(document) -> int:
    """How many strings an echo begins with: each is said once, then in two pieces three times."""
    return len(document) // 7


def test_look_ups_are_answered_by_their_facts() -> None:
    for document in documents(random.Random(4), 300, curriculum=True):
        pieces = [piece.text for piece in document]
        for k, text in enumerate(pieces):
            if text == SEPARATOR:
                assert pieces[k + 1] in pieces[0]


def test_texts_for_a_tokenizer_hold_every_word() -> None:
    texts = list(world.lab_texts(0, 50))
    assert texts == list(world.lab_texts(0, 50)) and texts[-1] in world.vocabulary()
    assert set(" ".join(texts).split()) == set(world.vocabulary())
