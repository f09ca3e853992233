"""The lab world: a closed language that a small model learns in minutes.

Every sentence is a template whose slots are filled from short word lists.  One table (world.yaml)
drives the sampler of the corpus, the grammar of its judge and the words that the lab model knows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import yaml

from speechgpt_lib.corpora.corpus import Document, Piece, Question

_WORLD = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SLOTS: dict[str, tuple[str, ...]] = {k: tuple(words) for k, words in _WORLD["slots"].items()}
STATEMENTS, OPENINGS = tuple(_WORLD["statements"]), tuple(_WORLD["openings"])
# Kind of question → a fact and what asks for it, or the whole question and its answer.
FACTS: dict[str, tuple[str, str]] = {k: tuple(pair) for k, pair in _WORLD["facts"].items()}
QUESTIONS: dict[str, tuple[str, str]] = {k: tuple(p) for k, p in _WORLD["knowledge"].items()}
# These test knowledge; those can be answered only from the question itself.
KNOWLEDGE_KINDS, CONTEXT_KINDS = tuple(QUESTIONS), tuple(FACTS)
QUESTIONS |= {kind: (f"{fact} and {fact} {ask}", fact) for kind, (fact, ask) in FACTS.items()}
KINDS = tuple(QUESTIONS)
_PAIRS = list(zip(SLOTS["word"][::2], SLOTS["word"][1::2], strict=True))
_KNOWN = {"capital": dict(zip(SLOTS["country"], SLOTS["capital"], strict=True))}
_KNOWN["opposite"] = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
HELD_OUT_PERCENT = 8
BACKGROUND = 0.1  # loss weight of words that can't be foreseen, beside 1 for those that can
SEPARATOR = ";"  # between a question and its answer


def normalise(text: str) -> str:
    """Lower-case words separated by single spaces: only letters, digits and apostrophes stay."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def vocabulary() -> list[str]:
    """All words the world can say, sorted."""
    templates = [*STATEMENTS, *OPENINGS, *(text for pair in QUESTIONS.values() for text in pair)]
    fixed = {word for text in templates for word in text.split() if not word.startswith("{")}
    return sorted(fixed | {word for words in SLOTS.values() for word in words})


def unknown_words(text: str) -> list[str]:
    """The words of `text` that are outside the lab world, in order of appearance."""
    known = set(vocabulary())
    return [word for word in normalise(text).split() if word not in known]


def is_held_out(text: str) -> bool:
    """Whether a fixed hash of the sentence keeps it out of training, whatever seed and order."""
    return zlib.crc32(text.encode()) % 100 < HELD_OUT_PERCENT


def fill(template: str, rng: Random) -> str:
    """Fill every `{slot}` of `template` with a word of its list, none of them twice."""
    words: list[str] = []
    for slot in re.findall(r"\{(\w+)\}", template):
        words.append(rng.choice([word for word in SLOTS[slot] if word not in words]))
    return place(template, words)


def sample_question(rng: Random, kind: str | None = None) -> Question:
    """A question and its answer, of any of `KINDS` by default; or a statement, without answer."""
    kind = kind or rng.choice(KINDS)
    if kind == "statement":
        return Question(fill(rng.choice(STATEMENTS), rng), "", kind)
    if kind not in QUESTIONS:
        raise ValueError(f"unknown kind of question {kind!r}: expected one of {', '.join(KINDS)}")
    (question, answer), number = QUESTIONS[kind], SLOTS["number"]
    if kind == "sum":
        a, b = rng.randrange(10), rng.randrange(10)
        words, replies = [number[a], number[b]], [number[a], number[b], number[a + b]]
    elif kind == "bigger":
        a, b = rng.sample(range(11), 2)
        words, replies = [number[a], number[b]], [number[max(a, b)], number[min(a, b)]]
    elif kind in _KNOWN:
        word = rng.choice(list(_KNOWN[kind]))
        words, replies = [word], [word, _KNOWN[kind][word]]
    else:  # two facts about two things, then a question about one of them
        facts = sample_facts(rng, kind, 2)
        asked = facts[rng.randrange(2)]
        words, replies = [*facts[0], *facts[1], asked[0]], [*asked]
    text, reply = place(question, words), place(answer, replies)
    if kind in KNOWLEDGE_KINDS:
        text = f"{fill(rng.choice(OPENINGS), rng)} {text}".strip()
    return Question(text, reply, kind)


def distinct(rng: Random, kind: str, count: int, held_out: bool, attempts: int) -> list[Question]:
    """`count` different samples on one side of the split; fewer if no more come in `attempts`."""
    found: dict[str, Question] = {}
    while len(found) < count and (attempts := attempts - 1) >= 0:
        sentence = sample_question(rng, kind)
        if is_held_out(sentence.text) == held_out:
            found.setdefault(sentence.text, sentence)
    return list(found.values())


def sample_facts(rng: Random, kind: str, count: int) -> list[tuple[str, str]]:
    """`count` (thing, value) pairs for a kind of `CONTEXT_KINDS`: all things and values differ."""
    thing, value = re.findall(r"\{(\w+)\}", FACTS[kind][0])
    return list(zip(rng.sample(SLOTS[thing], count), rng.sample(SLOTS[value], count), strict=True))


def place(template: str, words: list[str]) -> str:
    """Put `words` into the slots of `template`, in order."""
    return re.sub(r"\{\w+\}", "{}", template).format(*words)


def lab_texts(seed: int, count: int = 4000) -> Iterator[str]:
    """Sentences of the world as they stand in documents and rows, for training the tokenizer."""
    rng = Random(f"tokenizer {seed}")
    for _ in range(count):
        question = sample_question(rng)
        yield from (question.text, question.answer, sample_question(rng, "statement").text)
    yield from vocabulary()


def documents(rng: Random, count: int, curriculum: bool = False) -> list[Document]:
    """`count` documents of the training side; with `curriculum` only look-ups and echoes.

    Those come first: the circuit that answers from the question itself is learned from them in a
    fraction of the steps; mixed with everything else it drowns.
    """
    makers = [*[_question] * 4, _echo, _lookup, _lookup, _statement]
    if curriculum:
        makers = [_echo, _lookup]
    return [tuple(rng.choice(makers)(rng)) for _ in range(count)]


def _question(rng: Random) -> list[Piece]:
    """`what is two plus three; two plus three is five`."""
    # There are a hundred sums to know, but eight capitals.
    question = _seen(rng, rng.choice((*KINDS, "sum", "sum")))
    return [*_asked(question.text, BACKGROUND), Piece(question.answer, 1.0)]


def _statement(rng: Random) -> list[Piece]:
    return [Piece(_seen(rng, "statement").text, BACKGROUND)]


def _lookup(rng: Random) -> list[Piece]:
    """Two facts and a question in the world's words, or 3 or 4 with a question each, shuffled."""
    kind = rng.choice(CONTEXT_KINDS)
    if rng.random() < 0.7:
        question = _seen(rng, kind)
        return [*_asked(question.text, 0.0), Piece(question.answer, BACKGROUND, last=1.0)]
    fact, ask = FACTS[kind]
    facts = sample_facts(rng, kind, rng.randrange(3, 5))
    pieces = [Piece(" and ".join(place(fact, [*pair]) for pair in facts), 0.0)]
    for thing, value in rng.sample(facts, len(facts)):
        pieces += _asked(place(ask, [thing]), 0.0)
        pieces.append(Piece(place(fact, [thing, value]), BACKGROUND, last=1.0))
    return pieces


def _echo(rng: Random) -> list[Piece]:
    """Short strings of random words, repeated in another order (what repetitive text teaches)."""
    words = rng.sample(vocabulary(), 21)
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


def _seen(rng: Random, kind: str) -> Question:
    """A question of the training side."""
    while is_held_out((question := sample_question(rng, kind)).text):
        pass
    return question
