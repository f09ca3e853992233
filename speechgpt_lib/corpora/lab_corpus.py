"""The lab world as a corpus of the recipe: its speech is made here, its text never ends, and its judges know its grammar."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechgpt_lib.corpora import lab_text, world
from speechgpt_lib.corpora.corpus import Document, Question
from speechgpt_lib.corpora.lab import all_answers, build_corpus
from speechgpt_lib.metrics.judge import (
    SpeechJudge,
    bigram_judge,
    grammar_from_templates,
    template_judge,
)
from speechgpt_lib.recipes.sources import LabCorpus


@dataclass(frozen=True)
class LabReader:
    """See `corpus.Corpus`."""

    settings: LabCorpus
    name: str = "lab"

    def build(self, folder: Path, seed: int) -> dict:
        """Speak the corpus into Parquet shards."""
        build_corpus(self.settings, seed, folder)
        return {"speaking": [self.settings.target_voice]}

    def normalise(self, text: str) -> str:
        """Lower-case words without punctuation."""
        return world.normalise(text)

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that are outside the lab world, in order of appearance."""
        return world.unknown_words(text)

    def texts(self, seed: int) -> Iterator[str]:
        """Sentences and single words of the world."""
        return lab_text.lab_texts(seed)

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """Questions with answers, look-ups, echoes and statements of the training side."""
        return lab_text.documents(rng, count, curriculum)

    def questions(self, rng: random.Random, count: int) -> list[Question]:
        """Of `count` random questions those of the training side."""
        drawn = [world.sample_question(rng) for _ in range(count)]
        return [question for question in drawn if not world.is_held_out(question.text)]

    def held_out_questions(self, per_kind: int) -> list[Question]:
        """Up to `per_kind` different ones of every kind."""
        rng = random.Random("held-out text questions")
        return [q for kind in world.KINDS for q in lab_text.held_out_questions(rng, kind, per_kind)]

    def judges(self) -> dict[str, SpeechJudge]:
        """One that hears whole sentences of the grammar, one that hears any sequence of words."""
        closed = [*world.STATEMENTS, *(answer for _, answer in world.QUESTIONS.values())]
        closed += [world.QUESTIONS[kind][0] for kind in world.CONTEXT_KINDS]
        opened = [world.QUESTIONS[kind][0] for kind in world.KNOWLEDGE_KINDS]
        openings = [opening for opening in world.OPENINGS if opening]
        grammar = grammar_from_templates(closed, world.SLOTS, opened=opened, openings=openings)
        words = world.vocabulary()
        return {"": template_judge(grammar), "_bigram": bigram_judge(_sentences(), words=words)}


def _sentences(count: int = 6000) -> list[str]:
    """Sentences of training only: the bigram judge never read a held-out one."""
    rng = random.Random("bigram judge")
    found = list(all_answers())
    while len(found) < count:
        if rng.random() < 0.4:
            text = world.sample_statement(rng)
        else:
            text = world.sample_question(rng).text
        if not world.is_held_out(text):
            found.append(text)
    return found
