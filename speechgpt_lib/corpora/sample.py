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
from speechgpt_lib.corpora.lab import RATES, plan_corpus, speak_all
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

    Args:
        recipe: whose training sentences decide what counts as `seen`, and whose target voice is the default voice.
        kind: one of `KINDS`; all of them in turn when None.
        held_out: sentences that training never uses (the default), or any sentence of the world.
    """
    lab = next((corpus for corpus in recipe.corpora if isinstance(corpus, LabCorpus)), None)
    if lab is None:
        raise UserError(
            f"recipe {recipe.name} has no lab corpus: only the lab's sentences are made here"
        )
    voice = voice or lab.target_voice
    if voice not in VOICES:
        raise UserError(f"unknown voice {voice!r}: choose one of {', '.join(VOICES)}")
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if count < 1:
        raise UserError(f"asked for {count} sentences: at least 1 is needed")
    seen = {row["text"] for row in plan_corpus(lab, recipe.seed) if row["split"] == "train"}
    rng = random.Random(f"sample {seed}")
    rows = []
    for text, answer, name in _sentences(rng, count, kind, held_out):
        row = {
            "id": f"{len(rows):04d}",
            "text": text,
            "answer": answer,
            "kind": name,
            "voice": voice,
            "split": "",
        }
        rows.append(row | {"rate": rng.choice(RATES), "pitch": 1.0})
    records = []
    for spoken in speak_all(rows):
        path = f"{spoken.id}.wav"
        write_audio(folder / path, spoken.wave)
        record = {
            "path": path,
            "text": spoken.text,
            "answer": spoken.answer,
            "kind": spoken.kind,
            "voice": voice,
        }
        records.append(
            record | {"held_out": world.is_held_out(spoken.text), "seen": spoken.text in seen}
        )
    write_text(folder / "items.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return records


def _sentences(
    rng: random.Random, count: int, kind: str | None, held_out: bool
) -> list[tuple[str, str, str]]:
    found: dict[str, tuple[str, str, str]] = {}
    for attempt in range(count * 400 + 4000):
        if len(found) == count:
            return list(found.values())
        name = kind or KINDS[(len(found) + attempt // 400) % len(KINDS)]
        if name == "statement":
            item = (world.sample_statement(rng), "", name)
        else:
            question = world.sample_question(rng, name)
            item = (question.text, question.answer, name)
        if not held_out or world.is_held_out(item[0]):
            found.setdefault(item[0], item)
    side = "held-out " if held_out else ""
    raise UserError(
        f"the lab world has only {len(found)} {side}sentences of kind {kind or 'any'}, {count} were asked for: lower -n"
    )
