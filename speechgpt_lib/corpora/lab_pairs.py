"""Minimal pairs of the lab world, in the published layouts: what speech alone can teach.

    words/gold.csv        a word of the world, and one that no sentence has (as sWUGGY)
    order/gold.csv        a statement, and its words in an order that no template has (as sBLIMP)
    topic/N_correct.wav   a question about what was told, and about what was not (as tStoryCloze)
    answer/N_correct.wav  a question with its right answer, and with a wrong one (as sStoryCloze)

All is said by the target voice.  What is right of the last three is a held-out sentence.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.corpora.lab import RATES, speak_all
from speechgpt_lib.corpora.minimal_pairs import GOLD
from speechgpt_lib.corpora.speech import synthesize
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import write_text

VOWELS, CONSONANTS = "aeiou", "bdfgklmnprstvz"
PAUSE = np.zeros(int(0.2 * SAMPLE_RATE), np.float32)  # between a question and its answer
Texts = tuple[str, ...]  # what a recording says, with a pause between


def write_lab_pairs(folder: Path, count: int, seed: int, voice: str) -> None:
    """Write `count` pairs of each kind, or as many as there are, into `folder`."""
    rng = random.Random(f"minimal pairs {seed}")
    listed = {"words": word_pairs(rng, count), "order": order_pairs(rng, count)}
    stories = {"topic": topic_pairs(rng, count), "answer": answer_pairs(rng, count)}
    named: dict[str, Texts] = {}  # file → what it says
    for kind, pairs in listed.items():
        rows = []
        for k, pair in enumerate(pairs):
            for correct, said in ((1, pair[0]), (0, pair[1])):
                name = f"{k:04d}_{'ba'[correct]}"
                rows.append((k, name, voice, said, correct))
                named[f"{kind}/{name}.wav"] = (said,)
        _write_gold(folder / kind / GOLD, rows)
    for kind, pairs in stories.items():
        for k, (right, wrong) in enumerate(pairs):
            named |= {f"{kind}/{k}_correct.wav": right, f"{kind}/{k}_incorrect.wav": wrong}
    texts = list(dict.fromkeys(text for said in named.values() for text in said))
    plan = [Utterance("", text, "", "", voice, "", rate=RATES[1]) for text in texts]
    waves = {u.text: u.wave for u in speak_all(plan)}
    for name, said in named.items():
        parts = [part for text in said for part in (PAUSE, waves[text])][1:]
        write_audio(folder / name, np.concatenate(parts))


def _write_gold(path: Path, rows: list[tuple]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("id", "filename", "voice", "transcription", "correct"), *rows])
    write_text(path, table.getvalue())


def word_pairs(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Words of the world, each with one that sounds unlike all of them but has as many phones."""
    known = {word: phones_of(word) for word in world.vocabulary()}
    words = [word for word in known if len(known[word]) > 2]
    found = []
    for word in rng.sample(words, min(count, len(words))):
        for _ in range(200):
            other = _respelled(rng, word)
            phones = phones_of(other)
            if len(phones) == len(known[word]) and phones not in known.values():
                found.append((word, other))
                break
    return found


def phones_of(word: str) -> Texts:
    """What eSpeak says for a word."""
    return tuple(phone.label for phone in synthesize(word, "Male1")[1] if phone.label)


def _respelled(rng: random.Random, word: str) -> str:
    """The word with one of its vowels and one of its consonants replaced by another."""
    letters = list(word)
    for kind in (VOWELS, CONSONANTS):
        if places := [k for k, letter in enumerate(letters) if letter in kind]:
            place = rng.choice(places)
            letters[place] = rng.choice([one for one in kind if one != letters[place]])
    return "".join(letters)


def order_pairs(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Held-out statements, each with its words in an order that no template has."""
    pairs = []
    for statement in world.distinct(rng, "statement", count, True, 400 * count):
        words = statement.text.split()
        while is_sentence(shuffled := " ".join(rng.sample(words, len(words)))):
            pass
        pairs.append((statement.text, shuffled))
    return pairs


def is_sentence(text: str) -> bool:
    """Whether a template of a statement can say `text`."""
    return any(re.fullmatch(pattern, text) for pattern in _PATTERNS)


_SLOT = {name: f"(?:{'|'.join(words)})" for name, words in world.SLOTS.items()}
_PATTERNS = [re.sub(r"\{(\w+)\}", lambda m: _SLOT[m[1]], text) for text in world.STATEMENTS]


def topic_pairs(rng: random.Random, count: int) -> list[tuple[Texts, Texts]]:
    """Two facts and a question about one of them, or about a thing that was not named."""

    def pair(told: str, fact: str, ask: str, facts: list) -> tuple[Texts, Texts]:
        asked, other = (f"{told} {world.place(ask, [thing])}" for thing, _ in facts[1:])
        return (asked,), (other,)

    return _stories(rng, count, pair)


def answer_pairs(rng: random.Random, count: int) -> list[tuple[Texts, Texts]]:
    """A question that holds its answer, with that, or with the other thing it names."""

    def pair(told: str, fact: str, ask: str, facts: list) -> tuple[Texts, Texts]:
        (thing, value), (_, other) = rng.sample(facts[:2], 2)
        asked = f"{told} {world.place(ask, [thing])}"
        right, wrong = (world.place(fact, [thing, said]) for said in (value, other))
        return (asked, right), (asked, wrong)

    return _stories(rng, count, pair)


def _stories(rng: random.Random, count: int, pair: Callable) -> list[tuple[Texts, Texts]]:
    """Up to `count` different pairs about two facts of three, the question held out."""
    found: dict[tuple[Texts, Texts], None] = {}
    for _ in range(400 * count):
        kind = rng.choice(world.CONTEXT_KINDS)
        fact, ask = world.FACTS[kind]
        facts = world.sample_facts(rng, kind, 3)
        told = " and ".join(world.place(fact, [*one]) for one in facts[:2])
        made = pair(told, fact, ask, facts)
        if world.is_held_out(made[0][0]):
            found[made] = None
        if len(found) == count:
            break
    return list(found)
