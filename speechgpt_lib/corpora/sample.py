"""Fresh test speech of the lab world, so that anyone can test a model on sentences nobody chose.

DIR/0000.wav …      16 kHz mono
DIR/items.jsonl     one object a line: path, text, answer, kind, voice, held_out, seen
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.corpora.corpus import Question
from speechgpt_lib.corpora.lab import RATES, plan_corpus, speak_all
from speechgpt_lib.corpora.segments import Utterance
from speechgpt_lib.corpora.speech import VOICES
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import LabCorpus
from speechgpt_lib.runs.artefacts import write_text

KINDS = (*world.KINDS, "statement")


def sample_set(
    folder: Path,
    count: int,
    seed: int,
    recipe: Recipe,
    voice: str | None = None,
    kind: str | None = None,
    held_out: bool = True,
) -> list[dict]:
    """Write `count` different sentences as speech into `folder` and return their records.

    recipe: its training sentences count as `seen`, and its target voice is the default voice.
    kind: one of `KINDS`; all of them in turn when None.
    held_out: sentences that training never uses, or any sentence of the world.

    Raises UserError: unknown voice or kind, no lab corpus, or more sentences than there are.
    """
    lab = next((corpus for corpus in recipe.corpora if isinstance(corpus, LabCorpus)), None)
    if lab is None:
        raise UserError(f"recipe {recipe.name} has no lab corpus: only its sentences are made here")
    voice = voice or lab.target_voice
    if voice not in VOICES:
        raise UserError(f"unknown voice {voice!r}: choose one of {', '.join(VOICES)}")
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if count < 1:
        raise UserError(f"asked for {count} sentences: at least 1 is needed")
    seen = {u.text for u in plan_corpus(lab, recipe.seed) if u.split == "train"}
    rng = random.Random(f"sample {seed}")
    plan = [
        Utterance(f"{k:04d}", s.text, s.answer, s.kind, voice, "", rate=rng.choice(RATES))
        for k, s in enumerate(_sentences(rng, count, kind, held_out))
    ]
    records = []
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
