"""Documents of the lab world, on which the stand-in for LLaMA-13B is pre-trained.

Look-ups and echoes alone come first (a curriculum): the circuit that answers from the question
itself is learned from them in a fraction of the steps; mixed with everything else it drowns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.corpus import Document, Piece, Question

BACKGROUND = 0.1  # loss weight of words that can't be foreseen, beside 1 for those that can
SEPARATOR = ";"  # between a question and its answer


def lab_texts(seed: int, count: int = 4000) -> Iterator[str]:
    """Sentences of the world as they stand in documents and rows, for training the tokenizer."""
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(count):
        question = world.sample_question(rng)
        yield from (question.text, question.answer, world.sample_statement(rng))
    yield from world.vocabulary()


def documents(rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
    """`count` documents of the training side; with `curriculum` only look-ups and echoes."""
    makers = [_question] * 4 + [_echo, _lookup, _lookup, _statement]
    if curriculum:
        makers = [_echo, _lookup]
    return [tuple(rng.choice(makers)(rng)) for _ in range(count)]


def _question(rng: random.Random) -> list[Piece]:
    """`what is two plus three; two plus three is five`."""
    kind = rng.choice((*world.KINDS, "sum", "sum"))  # a hundred sums to know, but eight capitals
    question = _seen(rng, kind)
    return [*_asked(question.text, BACKGROUND), Piece(question.answer, 1.0)]


def _statement(rng: random.Random) -> list[Piece]:
    return [Piece(_seen(rng, "statement").text, BACKGROUND)]


def _lookup(rng: random.Random) -> list[Piece]:
    """Two facts and one question in the world's own words, or 3 or 4 facts with a question each.

    Questions come in another order than facts.
    """
    kind = rng.choice(world.CONTEXT_KINDS)
    if rng.random() < 0.7:
        question = _seen(rng, kind)
        return [*_asked(question.text, 0.0), Piece(question.answer, BACKGROUND, last=1.0)]
    fact, ask = world.FACTS[kind]
    facts = world.sample_facts(rng, kind, rng.randrange(3, 5))
    pieces = [Piece(" and ".join(world.place(fact, [*pair]) for pair in facts), 0.0)]
    for thing, value in rng.sample(facts, len(facts)):
        pieces += _asked(world.place(ask, [thing]), 0.0)
        pieces.append(Piece(world.place(fact, [thing, value]), BACKGROUND, last=1.0))
    return pieces


def _echo(rng: random.Random) -> list[Piece]:
    """Short strings of random words, repeated in another order (what repetitive text teaches)."""
    words = rng.sample(world.vocabulary(), 21)
    lengths = range(rng.randrange(3, 8))
    chunks = [[words.pop() for _ in range(rng.choice((2, 2, 3)))] for _ in lengths]
    pieces = [Piece(" ".join(chunk), 0.0) for chunk in chunks]
    for _ in range(3):
        rng.shuffle(chunks)
        for chunk in chunks:
            pieces += [Piece(chunk[0], 0.0), Piece(" ".join(chunk[1:]), 1.0)]
    return pieces


def _asked(question: str, weight: float) -> list[Piece]:
    return [Piece(question, weight), Piece(SEPARATOR, weight)]


def _seen(rng: random.Random, kind: str) -> Question:
    """A question of the training side."""
    while world.is_held_out((question := world.sample_question(rng, kind)).text):
        pass
    return question
