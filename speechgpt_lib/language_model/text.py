"""The text of the lab world on which the stand-in for LLaMA-13B is pre-trained: documents, token by token with their weights.

A document is one of
- *question and answer*: `what is two plus three; two plus three is five`
- *look-up*: a few facts, then a question and answer about each of them, in another order
- *echo*: short strings of random words, said again and again in another order (what a reader of repetitive text learns to expect)
- *statement*: a sentence.

Look-ups and echoes alone come first: the circuit that answers from the question itself is learned from them in a fraction of the
steps, whereas mixed with everything else from the start it drowns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from speechgpt_lib.corpora import world
from speechgpt_lib.language_model.rows import TokenRow
from speechgpt_lib.language_model.vocabulary import Vocabulary

BACKGROUND = 0.1  # weight of words that can't be foreseen, beside 1 for those that can


def lab_texts(seed: int, count: int = 4000) -> Iterator[str]:
    """Sentences of the world as they stand in documents and rows, for training the tokenizer."""
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(count):
        question = world.sample_question(rng)
        yield from (question.text, question.answer, world.sample_statement(rng))
    yield from world.vocabulary()


def text_rows(
    vocabulary: Vocabulary,
    rng: random.Random,
    count: int,
    curriculum: bool = False,
    weight: float = 1.0,
) -> list[TokenRow]:
    """`count` documents whose tokens count `weight` times; with `curriculum` only look-ups and echoes."""
    makers = (
        [_echo, _lookup]
        if curriculum
        else [_question, _question, _question, _question, _echo, _lookup, _lookup, _statement]
    )
    rows = [makers[rng.randrange(len(makers))](vocabulary, rng) for _ in range(count)]
    return (
        rows
        if weight == 1
        else [TokenRow(row.ids, [weight * w for w in row.weights]) for row in rows]
    )


def question_prompt(vocabulary: Vocabulary, question: str) -> list[int]:
    """The ids after which the pre-trained text model continues with the answer to `question`."""
    return [vocabulary.begin, *vocabulary.encode_text(question), *vocabulary.encode_text(";")]


def _question(vocabulary: Vocabulary, rng: random.Random) -> TokenRow:
    kind = rng.choice(
        (*world.KINDS, "sum", "sum")
    )  # there are a hundred sums to know, but eight capitals
    question = _seen(lambda: world.sample_question(rng, kind))
    prompt, answer = (
        question_prompt(vocabulary, question.text)[1:],
        vocabulary.encode_text(question.answer),
    )
    return _document(vocabulary, (prompt, BACKGROUND), (answer, 1.0))


def _statement(vocabulary: Vocabulary, rng: random.Random) -> TokenRow:
    while world.is_held_out(text := world.sample_statement(rng)):
        pass
    return _document(vocabulary, (vocabulary.encode_text(text), BACKGROUND))


def _lookup(vocabulary: Vocabulary, rng: random.Random) -> TokenRow:
    """Two facts and one question in the world's own words, or three or four facts and a question about each."""
    kind = rng.choice(world.CONTEXT_KINDS)
    if rng.random() < 0.7:
        question = _seen(lambda: world.sample_question(rng, kind))
        answer = vocabulary.encode_text(question.answer)
        prompt = question_prompt(vocabulary, question.text)[1:]
        return _document(vocabulary, (prompt, 0.0), (answer[:-1], BACKGROUND), (answer[-1:], 1.0))
    fact, ask = world.FACTS[kind]
    facts = world.sample_facts(rng, kind, rng.randrange(3, 5))
    parts = [
        (vocabulary.encode_text(" and ".join(world.place(fact, [*pair]) for pair in facts)), 0.0)
    ]
    for thing, value in rng.sample(facts, len(facts)):
        answer = vocabulary.encode_text(world.place(fact, [thing, value]))
        parts += [
            (question_prompt(vocabulary, world.place(ask, [thing]))[1:], 0.0),
            (answer[:-1], BACKGROUND),
            (answer[-1:], 1.0),
        ]
    return _document(vocabulary, *parts)


def _echo(vocabulary: Vocabulary, rng: random.Random) -> TokenRow:
    words = rng.sample(world.vocabulary(), 21)
    chunks = [
        [words.pop() for _ in range(rng.choice((2, 2, 3)))] for _ in range(rng.randrange(3, 8))
    ]
    parts = [(vocabulary.encode_text(" ".join(chunk)), 0.0) for chunk in chunks]
    for _ in range(3):
        rng.shuffle(chunks)
        for chunk in chunks:
            parts += [
                (vocabulary.encode_text(chunk[0]), 0.0),
                (vocabulary.encode_text(" ".join(chunk[1:])), 1.0),
            ]
    return _document(vocabulary, *parts)


def _document(vocabulary: Vocabulary, *parts: tuple[list[int], float]) -> TokenRow:
    ids = [vocabulary.begin] + [i for piece, _ in parts for i in piece] + [vocabulary.end]
    weights = [0.0] + [w for piece, w in parts for _ in piece] + [1.0]
    return TokenRow(ids, weights)


def _seen(sample):
    while world.is_held_out((question := sample()).text):
        pass
    return question
