"""The lab corpus: sentences of the lab world spoken by several voices, instead of recorded speech.

Its speech is made here, its text never ends, and its judges know its grammar.  Its voices:

    target       most statements and questions, every answer: the voice that answers
    aligned      fewer statements and questions, for stages 1 to 3 (as the listening side)
    unlabelled   statements and questions whose text is not used, for units and stage 1
    held out     held-out sentences only, for evaluation

The splits are those of `corpus.py`; `test` has held-out sentences in known voices.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora import lab_text, world
from speechgpt_lib.corpora.corpus import Corpus, Document, Question
from speechgpt_lib.corpora.speech import synthesize
from speechgpt_lib.corpora.tables import Utterance, write_shard
from speechgpt_lib.metrics import judge
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.sources import LabCorpus
from speechgpt_lib.runs.processes import run_in_processes

RATES = (165, 175, 185)  # words a minute; the target voice has the middle one
# Waves end in silence up to a multiple of 0.2 s, so that lengths repeat: oneDNN prepares each anew.
LENGTH_STEP = 3200


@dataclass(frozen=True)
class LabReader(Corpus):
    """See `corpus.Corpus`."""

    settings: LabCorpus
    name: str = "lab"

    def build(
        self, folder: Path, seed: int, processes: int = 2, shard_size: int = 400
    ) -> list[Path]:
        """Speak the whole plan into Parquet shards in `folder`; shards that are there are kept."""
        plan = plan_corpus(self.settings, seed)
        starts = range(0, len(plan), shard_size)
        shards = [folder / f"utterances-{k:05d}.parquet" for k in range(len(starts))]
        jobs = [(path, plan[i : i + shard_size]) for path, i in zip(shards, starts, strict=True)]
        missing = [job for job in jobs if not job[0].exists()]
        for _ in run_in_processes(_speak_shard, missing, processes, fresh=True):
            pass
        return shards

    def answers(self, utterance: Utterance) -> bool:
        """Only the target voice."""
        return utterance.voice == self.settings.target_voice

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
        samples = (functools.partial(world.sample_question, rng, kind) for kind in world.KINDS)
        found = (world.distinct(one, per_kind, True, 100 * per_kind) for one in samples)
        return [question for questions in found for question in questions]

    def judges(self) -> dict[str, judge.SpeechJudge]:
        """One that hears whole sentences of the grammar, one that hears any sequence of words."""
        closed = [*world.STATEMENTS, *(answer for _, answer in world.QUESTIONS.values())]
        closed += [world.QUESTIONS[kind][0] for kind in world.CONTEXT_KINDS]
        opened = [world.QUESTIONS[kind][0] for kind in world.KNOWLEDGE_KINDS]
        openings = [opening for opening in world.OPENINGS if opening]
        grammar = judge.grammar_from_templates(
            closed, world.SLOTS, opened=opened, openings=openings
        )
        anything = judge.bigram_judge(_sentences(), words=world.vocabulary())
        return {"": judge.template_judge(grammar), "_bigram": anything}


def plan_corpus(settings: LabCorpus, seed: int) -> list[Utterance]:
    """Every utterance without its sound, in a fixed order: a pure function of settings and seed."""
    rng = random.Random(f"lab corpus {seed}")
    plan: list[Utterance] = []

    def add(voice: str, split: str, sentences: list[Question]) -> None:
        for s in sentences:
            rate = 175 if voice == settings.target_voice else rng.choice(RATES)
            identity = f"{len(plan):06d}"
            plan.append(Utterance(identity, s.text, s.answer, s.kind, voice, split, rate=rate))

    def sample(split: str, statements: int, questions: int) -> list[Question]:
        held_out, sentences = split.startswith("test"), []
        each, more = divmod(questions, len(world.KINDS))
        counts = {kind: each + (k < more) for k, kind in enumerate(world.KINDS)}
        for kind, count in ({"statement": statements} | counts).items():
            one = functools.partial(world.sample_sentence, rng, kind)
            sentences += world.distinct(one, count, held_out, attempts=60 * count + 600)
        return sentences

    s = settings
    add(s.target_voice, "train", sample("train", s.target_statements, s.target_questions))
    add(s.target_voice, "train", [Question(text, "", "answer") for text in all_answers()])
    for voice in s.aligned_voices:
        add(voice, "train", sample("train", s.aligned_statements, s.aligned_questions))
    half = s.unlabelled_sentences // 2
    for voice in s.unlabelled_voices:
        add(voice, "unlabelled", sample("unlabelled", half, half))
    half = s.test_sentences // 2
    for voice in (s.target_voice, *s.aligned_voices):
        add(voice, "test", sample("test", half, half))
    add(s.held_out_voice, "test_voice", sample("test_voice", half, half))
    return plan


def all_answers() -> list[str]:
    """Every answer the world can give, sorted."""
    rng, found = random.Random(0), set()
    for kind in world.KINDS:
        found |= {world.sample_question(rng, kind).answer for _ in range(4000)}
    return sorted(found)


def speak(utterance: Utterance) -> Utterance:
    """Synthesize one utterance of the plan."""
    u = utterance
    wave, phones = synthesize(u.text, u.voice, u.rate, u.pitch)
    wave = np.pad(wave, (0, -len(wave) % LENGTH_STEP))
    return replace(u, seconds=len(wave) / SAMPLE_RATE, wave=wave, phones=phones)


def speak_all(plan: list[Utterance]) -> list[Utterance]:
    """Synthesize in a process of its own, so that the same plan always gives the same waves."""
    return next(run_in_processes(_speak_list, [plan], 1, fresh=True))


def _speak_list(plan: list[Utterance]) -> list[Utterance]:
    return [speak(u) for u in plan]


def _speak_shard(job: tuple[Path, list[Utterance]]) -> None:
    path, plan = job
    write_shard(path, map(speak, plan))


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
