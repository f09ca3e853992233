"""The lab corpus: sentences of the lab world spoken by several voices, instead of recorded speech.

Its speech is made here, its text never ends, and its judges know its grammar.  The target voice has
most statements and questions and every answer; another voice has held-out sentences only.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.corpora.corpus import Corpus, Question
from speechgpt_lib.corpora.speech import (
    ACCENTS,
    EXTRAS,
    PEAK,
    VOICES,
    Manner,
    Phone,
    check_voice,
    synthesize,
)
from speechgpt_lib.corpora.tables import Utterance, write_shard
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics import judge
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import LabCorpus
from speechgpt_lib.runs.artefacts import write_text
from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.runs.processes import run_in_processes

KINDS = (*world.KINDS, "statement")
RATES = (165, 175, 185)  # words a minute; the target voice has the middle one
MANY = "many"  # in the plan: a speaker of its own for each utterance
MANY_RATES = (130, 215)  # of these
# Waves end in silence up to a multiple of 0.2 s, so that lengths repeat: oneDNN prepares each anew.
LENGTH_STEP = 3200


@dataclass(frozen=True)
class LabReader(Corpus):
    """See `corpus.Corpus`; the target voice answers."""

    settings: LabCorpus
    name: str = "lab"
    normalise = staticmethod(world.normalise)
    unknown_words = staticmethod(world.unknown_words)
    texts = staticmethod(world.lab_texts)
    documents = staticmethod(world.documents)

    def build(self, folder: Path, seed: int, processes: int = 0, size: int = 400) -> list[Path]:
        """Speak the whole plan into `folder`, as `speak_shards` does."""
        return speak_shards(plan_corpus(self.settings, seed), folder, processes, size)

    def in_target_voice(self, speech: list[Utterance], seed: int) -> list[Utterance]:
        """What others say, in their accents, as the target voice is to say it: a plan."""
        plan, many = [], voices_of_many(self.settings)
        for u in speech:
            varied = u.voice in many
            accent = by_some_speaker(u, self.settings, seed).manner.accent if varied else ACCENTS[0]
            manner = Manner(accent, silence=(0.3, 0.3))
            voice = {"voice": self.settings.target_voice, "rate": RATES[1], "pitch": 1.0}
            plan.append(replace(u, manner=manner, wave=None, **voice))
        return plan

    def answers(self, utterance: Utterance) -> bool:
        """True for the target voice."""
        return utterance.voice == self.settings.target_voice

    def questions(self, rng: random.Random, count: int) -> list[Question]:
        """Of `count` random questions those of the training side."""
        drawn = [world.sample_question(rng) for _ in range(count)]
        return [question for question in drawn if not world.is_held_out(question.text)]

    def held_out_questions(self, per_kind: int) -> list[Question]:
        """Up to `per_kind` different ones of every kind."""
        rng, attempts = random.Random("held-out text questions"), 100 * per_kind
        kinds = (world.distinct(rng, kind, per_kind, True, attempts) for kind in world.KINDS)
        return [question for questions in kinds for question in questions]

    def judges(self) -> dict[str, judge.SpeechJudge]:
        """One that hears whole sentences of the grammar, one that hears any sequence of words."""
        closed = [*world.STATEMENTS, *(answer for _, answer in world.QUESTIONS.values())]
        closed += [world.QUESTIONS[kind][0] for kind in world.CONTEXT_KINDS]
        opened = [world.QUESTIONS[kind][0] for kind in world.KNOWLEDGE_KINDS]
        grammar = judge.grammar_from_templates(closed, world.SLOTS, opened, world.OPENINGS)
        rng, read = random.Random("bigram judge"), all_answers()
        while len(read) < 6000:  # it never read a held-out sentence
            text = world.sample_question(rng, "statement" if rng.random() < 0.4 else None).text
            read += [text] * (not world.is_held_out(text))
        anything = judge.bigram_judge(read, words=world.vocabulary())
        return {"": judge.template_judge(grammar), "_bigram": anything}

    def speak(self, texts: list[str]) -> list[np.ndarray]:
        """Texts in the target voice, at its own rate."""
        voice, rate = self.settings.target_voice, RATES[1]
        plan = [Utterance("", text, "", "", voice, "", rate=rate) for text in texts]
        return [u.wave for u in speak_all(plan)]


def plan_corpus(settings: LabCorpus, seed: int) -> list[Utterance]:
    """Every utterance without its sound, in a fixed order: a pure function of settings and seed."""
    s, rng, plan = settings, random.Random(f"lab corpus {seed}"), []
    tests, unlabelled = [s.test_sentences // 2] * 2, [s.unlabelled_sentences // 2] * 2
    parts = [(s.target_voice, "train", s.target_statements, s.target_questions)]
    parts += [(v, "train", s.aligned_statements, s.aligned_questions) for v in s.aligned_voices]
    parts += [(v, "unlabelled", *unlabelled) for v in s.unlabelled_voices]
    parts += [(v, "test", *tests) for v in (s.target_voice, *s.aligned_voices)]
    parts += [(s.held_out_voice, "test_voice", *tests)]
    parts += [(MANY, "train", s.many_statements, s.many_questions)]
    for voice, split, statements, questions in parts:
        sentences, held_out = [], split.startswith("test")
        each, more = divmod(questions, len(world.KINDS))
        counts = {kind: each + (k < more) for k, kind in enumerate(world.KINDS)}
        for kind, count in ({"statement": statements} | counts).items():
            sentences += world.distinct(rng, kind, count, held_out, attempts=60 * count + 600)
        if (voice, split) == (s.target_voice, "train"):
            sentences += [Question(text, "", "answer") for text in all_answers()]
        for q in sentences:
            rate = RATES[1] if voice == s.target_voice else rng.choice(RATES)
            u = Utterance(f"{len(plan):06d}", *q, voice, split, rate=rate)
            plan.append(by_some_speaker(u, s, seed) if voice == MANY else u)
    return plan


def voices_of_many(settings: LabCorpus) -> list[str]:
    """The voices of the many speakers: those without a role of their own."""
    known = {settings.target_voice, settings.held_out_voice}
    known |= {*settings.aligned_voices, *settings.unlabelled_voices}
    return [voice for voice in (*VOICES, *EXTRAS) if voice not in known]


def by_some_speaker(u: Utterance, settings: LabCorpus, seed: int) -> Utterance:
    """The utterance as its own speaker will say it: a draw from its id and the seed alone."""
    rng = random.Random(f"speaker {seed} {u.id}")
    voice = rng.choice(voices_of_many(settings))
    accent = ACCENTS[0] if rng.random() < 0.45 else rng.choice(ACCENTS[1:])
    rate, pitch = rng.randint(*MANY_RATES), round(math.exp(rng.uniform(-0.35, 0.35)), 3)
    pause = max(0.01, rng.uniform(-0.06, 0.06))
    silence = rng.uniform(0, 0.35), rng.uniform(0, 0.35)
    manner = Manner(accent, rng.uniform(0.4, 1.6), pause, silence, rng.getrandbits(32))
    return replace(u, voice=voice, rate=rate, pitch=pitch, manner=manner)


def all_answers() -> list[str]:
    """Every answer the world can give, sorted."""
    rng = random.Random(0)
    return sorted({world.sample_question(rng, k).answer for k in world.KINDS for _ in range(4000)})


def speak(u: Utterance) -> Utterance:
    """Synthesize one utterance of the plan."""
    wave, phones = synthesize(u.text, u.voice, u.rate, u.pitch, u.manner)
    before, after = (int(s * SAMPLE_RATE) for s in u.manner.silence)
    later = before / SAMPLE_RATE
    phones = [Phone(p.start + later, p.end + later, p.label) for p in phones]
    wave = np.pad(wave, (before, after + -(len(wave) + before + after) % LENGTH_STEP))
    if u.manner.seed is not None:
        from speechgpt_lib.corpora.perturb import perturb  # it loads scipy

        wave = perturb(wave, np.random.default_rng(u.manner.seed))
        wave *= PEAK / max(float(np.abs(wave).max()), 1e-9)
    return replace(u, seconds=len(wave) / SAMPLE_RATE, wave=wave, phones=phones)


def speak_shards(
    plan: list[Utterance], folder: Path, processes: int = 0, size: int = 400
) -> list[Path]:
    """Speak a plan into Parquet shards of `size` utterances; shards that are there are kept.

    Every shard is spoken in a process of its own, `processes` at once (0: as many as cores).
    """
    blocks = [plan[k : k + size] for k in range(0, len(plan), size)]
    shards = [folder / f"utterances-{k:05d}.parquet" for k in range(len(blocks))]
    missing = [job for job in zip(shards, blocks, strict=True) if not job[0].exists()]
    list(run_in_processes(_speak_shard, missing, processes or usable_cores(), fresh=True))
    return shards


def speak_all(plan: list[Utterance]) -> list[Utterance]:
    """Synthesize in a process of its own, so that the same plan always gives the same waves."""
    return next(run_in_processes(_speak_list, [plan], 1, fresh=True))


def _speak_list(plan: list[Utterance]) -> list[Utterance]:
    return [speak(u) for u in plan]


def _speak_shard(job: tuple[Path, list[Utterance]]) -> None:
    write_shard(job[0], map(speak, job[1]))


def sample_set(
    folder: Path, count: int, seed: int, recipe: Recipe, voice=None, kind=None, held_out=True
) -> list[dict]:
    """Write `count` different sentences as speech (0000.wav, …), and items.jsonl: their records.

    recipe: its training sentences count as `seen`, and its target voice is the default voice.
    kind: one of `KINDS`; all of them in turn when None.
    held_out: sentences that training never uses, or any sentence of the world.
    Raises UserError: unknown voice or kind, no lab corpus, or more sentences than there are.
    """
    if (lab := recipe.lab) is None:
        raise UserError(f"recipe {recipe.name} has no lab corpus: only its sentences are made here")
    voice = voice or lab.target_voice
    check_voice(voice)
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if count < 1:
        raise UserError(f"asked for {count} sentences: at least 1 is needed")
    seen = {u.text for u in plan_corpus(lab, recipe.seed) if u.split == "train"}
    rng, records = random.Random(f"sample {seed}"), []
    asked = enumerate(_sentences(rng, count, kind, held_out))
    plan = [Utterance(f"{k:04d}", *q, voice, "", rate=rng.choice(RATES)) for k, q in asked]
    for u in speak_all(plan):
        path = f"{u.id}.wav"
        write_audio(folder / path, u.wave)
        record = {"path": path, "text": u.text, "answer": u.answer, "kind": u.kind, "voice": voice}
        record |= {"held_out": world.is_held_out(u.text), "seen": u.text in seen}
        records.append(record)
    write_text(folder / "items.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return records


def _sentences(rng: random.Random, count: int, kind: str | None, held_out: bool) -> list[Question]:
    found: dict[str, Question] = {}
    for attempt in range(count * 400 + 4000):
        if len(found) == count:
            return list(found.values())
        name = kind or KINDS[(len(found) + attempt // 400) % len(KINDS)]
        sentence = world.sample_question(rng, name)
        if not held_out or world.is_held_out(sentence.text):
            found.setdefault(sentence.text, sentence)
    some = f"{len(found)} {'held-out ' * held_out}sentences of kind {kind or 'any'}"
    raise UserError(f"the lab world has only {some}, {count} were asked for: lower -n")
