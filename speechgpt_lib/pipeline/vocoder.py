"""The steps of notebook 02: train the vocoder, measure it, and train another for other numbers of
units."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.audio import to_16_bits
from speechgpt_lib.corpora.tables import Utterance, hear, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.judges import (
    OPEN,
    Judges,
    comparable,
    judges_if_installed,
    open_judge_settings,
)
from speechgpt_lib.evaluation.vocoder import Original, evaluate_vocoder, judge_originals
from speechgpt_lib.pipeline.imports import import_vocoder
from speechgpt_lib.pipeline.step import Cost, Definition, Job, part, trained
from speechgpt_lib.pipeline.units import load_encoder, training_speech
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.seeds import shuffled
from speechgpt_lib.units.extract import UnitRow, read_units
from speechgpt_lib.units.hubert import cluster_layer, utterances_for
from speechgpt_lib.units.inventory import UnitInventory, check_hop
from speechgpt_lib.units.sequence import merge
from speechgpt_lib.vocoder.speech import Speech, SpeechInMemory, SpeechOnDisk
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.vocoder.training import train_durations, train_vocoder

WITHOUT = "without_discriminators"  # folder beside the vocoder: the one to compare with
AHEAD = 4  # batches read beforehand, where speech lies on a disk


def make_vocoder(job: Job) -> dict:
    """Train generator and duration predictor on the voice that answers, or on all voices."""
    inventory = job.inventory()
    rows = read_units(job.path("units"), inventory.id, learned_speech(job))
    return _train(job, {row.id: row.frames for row in rows}, inventory)


def make_vocoder_evaluation(job: Job) -> dict:
    """Held-out speech through units and back, measured in sound, units and words.

    Also without discriminators, where such a vocoder was trained.
    """
    inventory, (judges, spelt) = job.inventory(), judging(job)
    chosen = held_out_speech(job, inventory.id, job.recipe.evaluation.vocoder_utterances)
    originals = with_waves(job.path("corpus"), chosen)
    figures: dict = {"utterances": len(originals)}
    if judges:
        figures["original"] = judge_originals(originals, judges, spelt)
    vocoder = Vocoder.load(job.path("vocoder"), inventory.id)
    figures |= evaluate_vocoder(vocoder, originals, inventory, judges, spelt)
    if (job.path("vocoder") / WITHOUT).is_dir():
        alone = Vocoder.load(job.path("vocoder") / WITHOUT, inventory.id)
        quick = {suffix: judge for suffix, judge in judges.items() if suffix != OPEN}
        figures[WITHOUT] = evaluate_vocoder(alone, originals, inventory, quick, spelt)
    return figures


def with_clusters(clusters: int) -> Definition:
    """The step of the same vocoder for another number of units, to hear what they keep.

    No other step needs it.  Its folder holds the inventory and the vocoder.
    """

    def make(job: Job) -> dict:
        corpus, settings = job.path("corpus"), job.recipe.units
        count = utterances_for(settings.kmeans_frames)
        speech = [u.wave for u in training_speech(job.recipe, corpus, count, job.recipe.seed + 1)]
        other = settings.model_copy(update={"clusters": clusters})
        inventory = cluster_layer(load_encoder(job), speech, other, job.recipe.seed)
        inventory.save(job.work / "inventory")
        spoken = hear(corpus, learned_speech(job))
        frames = {u.id: inventory.kmeans.assign(inventory.features(u.wave)) for u in spoken}
        summary = _train(job, frames, inventory)
        chosen = held_out_speech(job, None, job.recipe.evaluation.vocoder_utterances)
        originals = [_recoded(o, inventory) for o in with_waves(corpus, chosen)]
        judges, spelt = judging(job)
        vocoder = Vocoder.load(job.work, inventory.id)
        figures = evaluate_vocoder(vocoder, originals, inventory, judges, spelt)
        return summary | {"id": inventory.id} | figures

    def settings(recipe: Recipe) -> dict:
        made = {"clusters": clusters, "vocoder": recipe.vocoder.model_dump(mode="json")}
        return made | open_judge_settings(recipe)

    name = f"02_unit_vocoder/vocoder_{clusters}"
    return Definition(name, ("corpus", "hubert", "units"), settings, make)


def judging(job: Job) -> tuple[Judges, Callable[[str], str]]:
    """The judges of this run, and how transcripts are spelt to be compared."""
    corpora = job.corpora()
    judges = judges_if_installed(job.recipe, corpora, job.run.say)
    return judges, functools.partial(comparable, corpora)


def speaking_voices(job: Job) -> list[str]:
    """The voices that answer."""
    return job.inputs["corpus"].metrics["speaking"]


def learned_speech(job: Job) -> dict:
    """Which utterances the vocoder learns from, as `where` of a table."""
    if job.recipe.vocoder.all_voices:
        return {"split": ["train", "unlabelled", "voice"]}
    return {"voice": speaking_voices(job), "split": ["train", "voice"]}


def held_out_speech(job: Job, inventory_id: str | None, count: int) -> list[UnitRow]:
    """Held-out sentences of the voices that answer, else of all, in a seeded order."""
    rows = list(read_units(job.path("units"), inventory_id, {"split": "test"}))
    voices = set(speaking_voices(job))
    own = [row for row in shuffled(rows, job.recipe.seed) if row.voice in voices]
    return (own or shuffled(rows, job.recipe.seed))[:count]


def with_waves(corpus: Path, rows: Sequence[UnitRow]) -> list[Original]:
    """Held-out utterances with their sound."""
    chosen = {row.id: row for row in rows}
    spoken = hear(corpus, {"id": list(chosen)})
    return [Original(u.wave, u.text, chosen[u.id].units, chosen[u.id].durations) for u in spoken]


def _recoded(original: Original, inventory: UnitInventory) -> Original:
    units, durations = inventory.encode(original.wave)
    return replace(original, units=units, durations=durations)


def _speech(
    job: Job, frames: dict[str, np.ndarray], inventory: UnitInventory
) -> tuple[Speech, Utterance]:
    """The speech to learn from, with the units of each utterance, and its first utterance."""
    found = read_utterances(job.path("corpus"), audio=True, where=learned_speech(job))
    found = [u for u in shuffled(list(found), job.recipe.seed) if u.id in frames]
    if not found:
        cure = "give a corpus of the recipe role voice or aligned"
        raise UserError(f"no utterance to learn a voice from: {cure}")
    voices = set(speaking_voices(job))  # the first speaker is the one that answers by default
    chosen = sorted(found[: job.recipe.vocoder.utterances], key=lambda u: u.voice not in voices)
    many, hop = job.recipe.vocoder.all_voices, inventory.hop
    if all(u.path for u in chosen):
        return SpeechOnDisk([(u, frames[u.id]) for u in chosen], many, hop), chosen[0]
    pairs = [(frames[u.id], to_16_bits(u.read())) for u in chosen]  # half the memory
    voices = [u.voice for u in chosen] if many else None
    return SpeechInMemory(pairs, inventory.count, voices, hop), chosen[0]


def _train(job: Job, frames: dict[str, np.ndarray], inventory: UnitInventory) -> dict:
    """Utterance → frames of units, and the speech in the corpus → generator and duration
    predictor."""
    settings, options, checkpoints = job.recipe.vocoder, job.training, job.work / "checkpoints"
    check_hop(inventory, settings.hop, "a vocoder of vocoder.upsample_rates")
    speech, first = _speech(job, frames, inventory)
    more = {"sample": frames[first.id], "ahead": AHEAD if isinstance(speech, SpeechOnDisk) else 0}
    where = (speech, inventory.count, settings)
    generator, summary = train_vocoder(*where, checkpoints / "generator", options, **more)
    # In several processes only the first has the checkpoint to start from; comparing is a lesson
    # for one.
    joined = 0 < summary["adversarial_steps"] < summary["steps"]
    compared = settings.compare and options.world_size == 1 and joined
    if compared:
        more["joined_from"] = checkpoints / "generator"
        alone, _ = train_vocoder(*where, checkpoints / "alone", options, **more)
    merged = [merge(row) for row in frames.values()]
    durations, duration_summary = train_durations(
        merged, inventory.count, settings, checkpoints / "durations", options
    )
    # Copied, not moved: a step that is killed here must still resume.
    shutil.copy(checkpoints / "generator" / "metrics.jsonl", job.work)
    if (checkpoints / "generator" / "samples").is_dir():  # the first process listens
        samples = checkpoints / "generator" / "samples"
        shutil.copytree(samples, job.work / "samples", dirs_exist_ok=True)
    known = (inventory.id, settings, speech.names)
    if compared:
        Vocoder(alone, copy.deepcopy(durations), *known).save(job.work / WITHOUT)
    Vocoder(generator, durations, *known).save(job.work)
    waves = settings.optimization.steps * settings.batch_size * options.world_size
    frames = waves * settings.segment_frames
    heard = frames * settings.hop / SAMPLE_RATE  # s
    hours = {"hours": round(heard / 3600, 3)}
    return {"generator": summary, "durations": duration_summary} | hours


STEPS = (
    Definition(
        "vocoder",
        ("corpus", "units", "inventory"),
        part("vocoder"),
        make_vocoder,
        version=2,
        cost=trained(5.7),
        bring=import_vocoder,
        bring_needs=("inventory",),
    ),
    Definition(
        "vocoder_evaluation",
        ("corpus", "units", "inventory", "vocoder"),
        lambda recipe: (
            {"utterances": recipe.evaluation.vocoder_utterances} | open_judge_settings(recipe)
        ),
        make_vocoder_evaluation,
        version=2,
        cost=Cost(minutes=1.8),
    ),
)
