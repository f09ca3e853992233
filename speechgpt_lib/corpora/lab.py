"""The lab corpus: sentences of the lab world spoken by several voices, as the stand-in for recorded speech.

| voices     | sentences                                        | used by                                     |
|------------|--------------------------------------------------|---------------------------------------------|
| target     | most statements and questions, every answer      | everything; it is the voice that answers    |
| aligned    | fewer statements and questions                   | units, stages 1 to 3 (as the listening side)|
| unlabelled | statements and questions, text not used          | units, stage 1                              |
| held out   | held-out sentences only                          | evaluation only                             |

Splits: `train`, `test` (held-out sentences in known voices), `test_voice` (held-out sentences in the held-out voice).
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.speech import synthesize
from speechgpt_lib.corpora.tables import Utterance, write_shard
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.sources import LabCorpus
from speechgpt_lib.runs.processes import run_in_processes

RATES = (165, 175, 185)
LENGTH_STEP = 3200  # samples: waves end in silence up to a multiple of 0.2 s, so that lengths repeat: oneDNN prepares each length anew


def plan_corpus(settings: LabCorpus, seed: int) -> list[dict]:
    """Every utterance of the corpus without its sound, in a fixed order: a pure function of settings and seed."""
    rng = random.Random(f"lab corpus {seed}")
    plan: list[dict] = []

    def add(voice: str, split: str, statements: int, questions: int) -> None:
        held_out = split.startswith("test")
        sentences = _distinct(
            rng, statements, held_out, lambda: (world.sample_statement(rng), "", "statement")
        )
        kinds = world.KINDS * (questions // len(world.KINDS) + 1)
        for kind in world.KINDS:
            wanted = kinds[:questions].count(kind)
            sentences += _distinct(rng, wanted, held_out, lambda kind=kind: _question(rng, kind))
        for text, answer, kind in sentences:
            target = voice == settings.target_voice
            plan.append(
                _row(plan, text, answer, kind, voice, 175 if target else rng.choice(RATES), split)
            )

    add(settings.target_voice, "train", settings.target_statements, settings.target_questions)
    for answer in all_answers():
        plan.append(_row(plan, answer, "", "answer", settings.target_voice, 175, "train"))
    for voice in settings.aligned_voices:
        add(voice, "train", settings.aligned_statements, settings.aligned_questions)
    for voice in settings.unlabelled_voices:
        add(
            voice,
            "unlabelled",
            settings.unlabelled_sentences // 2,
            settings.unlabelled_sentences // 2,
        )
    for voice in (settings.target_voice, *settings.aligned_voices):
        add(voice, "test", settings.test_sentences // 2, settings.test_sentences // 2)
    add(
        settings.held_out_voice,
        "test_voice",
        settings.test_sentences // 2,
        settings.test_sentences // 2,
    )
    return plan


def all_answers() -> list[str]:
    """Every answer the world can give, sorted."""
    rng, found = random.Random(0), set()
    for kind in world.KINDS:
        found |= {world.sample_question(rng, kind).answer for _ in range(4000)}
    return sorted(found)


def build_corpus(
    settings: LabCorpus, seed: int, folder: Path, processes: int = 2, shard_size: int = 400
) -> dict:
    """Speak the whole plan into Parquet shards in `folder`; shards that are there already are kept.

    Returns counts: utterances, hours, sentences per split and voice.
    """
    plan = plan_corpus(settings, seed)
    shards = [
        (folder / f"utterances-{k:05d}.parquet", plan[i : i + shard_size])
        for k, i in enumerate(range(0, len(plan), shard_size))
    ]
    missing = [shard for shard in shards if not shard[0].exists()]
    for _ in run_in_processes(_speak_shard, missing, processes, fresh=True):
        pass
    seconds = sum(_shard_seconds(path) for path, _ in shards)
    splits = {
        s: sum(row["split"] == s for row in plan)
        for s in ("train", "unlabelled", "test", "test_voice")
    }
    voices = sorted({row["voice"] for row in plan})
    return {"utterances": len(plan), "hours": round(seconds / 3600, 3), "voices": voices} | splits


def speak(row: dict) -> Utterance:
    """Synthesize one row of the plan."""
    wave, phones = synthesize(row["text"], row["voice"], row["rate"], row["pitch"])
    wave = np.pad(wave, (0, -len(wave) % LENGTH_STEP))
    return Utterance(**row, seconds=len(wave) / SAMPLE_RATE, wave=wave, phones=phones)


def speak_all(rows: list[dict]) -> list[Utterance]:
    """Synthesize rows of a plan in one process of their own: the same rows give the same waves, whatever was spoken before."""
    return next(run_in_processes(_speak_list, [rows], 1, fresh=True))


def _speak_list(rows: list[dict]) -> list[Utterance]:
    return [speak(row) for row in rows]


def _speak_shard(job: tuple[Path, list[dict]]) -> None:
    path, rows = job
    write_shard(path, map(speak, rows))


def _shard_seconds(path: Path) -> float:
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_table(path, columns=["seconds"])["seconds"].to_pylist())


def _question(rng: random.Random, kind: str) -> tuple[str, str, str]:
    question = world.sample_question(rng, kind)
    return question.text, question.answer, kind


def _distinct(rng: random.Random, count: int, held_out: bool, sample) -> list[tuple[str, str, str]]:
    """`count` samples with different texts on the wanted side of the split; fewer when the world has no more to say."""
    found: dict[str, tuple[str, str, str]] = {}
    for _ in range(60 * count + 600):
        if len(found) == count:
            break
        item = sample()
        if world.is_held_out(item[0]) == held_out:
            found.setdefault(item[0], item)
    return list(found.values())


def _row(
    plan: list[dict], text: str, answer: str, kind: str, voice: str, rate: int, split: str
) -> dict:
    return {
        "id": f"{len(plan):06d}",
        "text": text,
        "answer": answer,
        "kind": kind,
        "voice": voice,
        "rate": rate,
        "pitch": 1.0,
        "split": split,
    }
