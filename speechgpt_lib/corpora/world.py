"""The lab world: a closed language that a small model learns in minutes.

Every sentence is a template whose slots are filled from short word lists (world.yaml).  One table
drives the sampler that writes the corpus, the grammar of the independent speech judge, and the list
of words that the lab model knows.
"""

from __future__ import annotations

import random
import re
import zlib
from pathlib import Path

import yaml

from speechgpt_lib.corpora.corpus import Question

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


def fill(template: str, rng: random.Random) -> str:
    """Fill every `{slot}` of `template` with a word of its list, none of them twice."""
    words: list[str] = []
    for slot in re.findall(r"\{(\w+)\}", template):
        words.append(rng.choice([word for word in SLOTS[slot] if word not in words]))
    return place(template, words)


def sample_statement(rng: random.Random) -> str:
    """One statement."""
    return fill(rng.choice(STATEMENTS), rng)


def sample_question(rng: random.Random, kind: str | None = None) -> Question:
    """One question and its answer; `kind` is one of `KINDS`, or any of them when None.

    For the kind `statement` it is a statement, without answer.
    """
    kind = kind or rng.choice(KINDS)
    if kind == "statement":
        return Question(sample_statement(rng), "", kind)
    if kind not in QUESTIONS:
        raise ValueError(f"unknown kind of question {kind!r}: expected one of {', '.join(KINDS)}")
    question, answer = QUESTIONS[kind]
    number = SLOTS["number"]
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


def distinct(
    rng: random.Random, kind: str, count: int, held_out: bool, attempts: int
) -> list[Question]:
    """`count` different samples on one side of the split; fewer if no more come in `attempts`."""
    found: dict[str, Question] = {}
    while len(found) < count and (attempts := attempts - 1) >= 0:
        sentence = sample_question(rng, kind)
        if is_held_out(sentence.text) == held_out:
            found.setdefault(sentence.text, sentence)
    return list(found.values())


def sample_facts(rng: random.Random, kind: str, count: int) -> list[tuple[str, str]]:
    """`count` (thing, value) pairs for a kind of `CONTEXT_KINDS`: all things and values differ."""
    thing, value = re.findall(r"\{(\w+)\}", FACTS[kind][0])
    return list(zip(rng.sample(SLOTS[thing], count), rng.sample(SLOTS[value], count), strict=True))


def place(template: str, words: list[str]) -> str:
    """Put `words` into the slots of `template`, in order."""
    remaining = iter(words)
    return re.sub(r"\{\w+\}", lambda _: next(remaining), template)
