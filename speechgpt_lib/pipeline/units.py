"""The steps of notebook 01: the corpus, HuBERT, the unit inventory and how good it is, and the
units of every utterance."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.audio import to_16_bits
from speechgpt_lib.corpora.build import build_table, open_corpora
from speechgpt_lib.corpora.corpus import HELD_OUT, LEARNED
from speechgpt_lib.corpora.lab import LabReader
from speechgpt_lib.corpora.natural import NATURAL_VOICES
from speechgpt_lib.corpora.tables import Utterance, hear, read_utterances
from speechgpt_lib.metrics.unit_quality import unit_quality
from speechgpt_lib.pipeline.imports import encoder_source, import_inventory
from speechgpt_lib.pipeline.step import Cost, Definition, Job, part, trained
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.seeds import rank, shuffled
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.extract import extract_units
from speechgpt_lib.units.foreign import encoder_from
from speechgpt_lib.units.hubert import (
    build_encoder,
    cluster_layer,
    frame_count,
    mfcc_of,
    quality_grid,
    train_encoder,
    utterances_for,
)
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.teacher import Teacher, same_moments

# As many ids are shuffled in memory; of more, those with the smallest hashes are taken.
MOST_SHUFFLED = 100_000
GRID_SPEECH = 300  # utterances from which the grid's centroids are made


def training_speech(
    corpus: Path, count: int, seed: int, phones=False, voices: list[str] | None = None
) -> Iterator[Utterance]:
    """A seeded sample of training utterances over all voices or these, those that can be read."""
    where = {"split": list(LEARNED)} | ({"voice": voices} if voices else {})
    identities = [u.id for u in read_utterances(corpus, where=where)]
    if len(identities) > MOST_SHUFFLED:
        chosen = set(heapq.nsmallest(count, identities, key=lambda i: rank(i, seed)))
    else:
        chosen = set(shuffled(identities, seed)[:count])
    return hear(corpus, {"id": chosen}, phones)


def make_corpus(job: Job) -> dict:
    """The utterance table of all corpora."""
    return build_table(job.recipe, job.work, job.run.say)


def make_hubert(job: Job) -> dict:
    """Pre-train the encoder on a sample of all voices."""
    settings = job.recipe.units.hubert
    chosen = job.path("corpus"), settings.utterances, job.recipe.seed
    speech = [  # 16 bits: half the memory
        replace(u, wave=to_16_bits(u.wave)) for u in training_speech(*chosen, phones=True)
    ]
    teachers = teachers_of(job.recipe, speech) if settings.targets_of == "target_voice" else None
    parts = [u.wave for u in speech], job.recipe.units, job.work, job.training
    encoder, targets, summary = train_encoder(*parts, teachers)
    targets.save(job.work / "mfcc_centroids.safetensors")
    save_module(encoder, job.work / "encoder.safetensors")
    return summary


def teachers_of(recipe: Recipe, speech: list[Utterance]) -> list[Teacher] | None:
    """Of what the lab's other voices say, the same in the target voice; of all else, itself.

    None without the lab, since what others recorded can't be spoken again here, and where the
    target voice tells no phones, by which its frames are found.
    """
    lab = next((m for m in open_corpora(recipe).members if isinstance(m, LabReader)), None)
    if lab is None or lab.settings.target_voice in NATURAL_VOICES:
        return None
    others = [u for u in speech if u.phones and not lab.answers(u)]
    again = {u.id: u for u in lab.in_target_voice(others, recipe.seed)}
    teachers = []
    for u in speech:
        frames = frame_count(len(u.wave))
        wave, moments = u.wave, np.arange(frames)
        if twin := again.get(u.id):
            wave = to_16_bits(twin.wave)
            moments = same_moments(u.phones, twin.phones, frames, frame_count(len(wave)))
        teachers.append(Teacher(wave, moments))
    return teachers


def hears_as_one(recipe: Recipe) -> bool:
    """Whether the encoder learned to hear everyone as the target voice."""
    asked = recipe.units.hubert.targets_of == "target_voice"
    return asked and all(
        corpus.reader == "lab" and corpus.target_voice not in NATURAL_VOICES
        for corpus in recipe.corpora
    )


def clustered_voices(job: Job) -> list[str] | None:
    """Whose speech is clustered; None: all.  Who hears all as one voice needs that one alone."""
    return job.inputs["corpus"].metrics["speaking"] if hears_as_one(job.recipe) else None


def make_inventory(job: Job) -> dict:
    """k-means on a hidden layer of the encoder, and how good its units are beside MFCC units."""
    settings, seed = job.recipe.units, job.recipe.seed
    encoder = load_encoder(job)
    count = utterances_for(settings.kmeans_frames)
    speech = training_speech(job.path("corpus"), count, seed + 1, voices=clustered_voices(job))
    inventory = cluster_layer(encoder, [u.wave for u in speech], settings, seed)
    inventory.save(job.work)
    mfcc_units = KMeansUnits.load(job.path("hubert") / "mfcc_centroids.safetensors")
    quality = compare_units(job.path("corpus"), inventory, mfcc_units)
    return {"id": inventory.id, "clusters": inventory.count} | quality


def bring_inventory(job: Job) -> dict:
    """An inventory that others made, or k-means of this run's speech on an encoder of theirs."""
    source, settings = job.recipe.imports.inventory, job.recipe.units
    if isinstance(source, str) or source.centroids is not None:
        return import_inventory(job)
    encoder, normalize = encoder_from(encoder_source(job, source))
    count, seed = utterances_for(settings.kmeans_frames), job.recipe.seed + 1
    waves = [u.wave for u in training_speech(job.path("corpus"), count, seed)]
    chosen = settings.model_copy(update={"layer": source.layer})
    inventory = cluster_layer(encoder, waves, chosen, job.recipe.seed, normalize)
    inventory.save(job.work)
    return {"id": inventory.id, "clusters": inventory.count}


def _bring_needs(recipe: Recipe) -> tuple[str, ...]:
    source = recipe.imports.inventory
    return () if isinstance(source, str) or source.centroids is not None else ("corpus",)


def load_encoder(job: Job):
    """The HuBERT that this run trained."""
    encoder = build_encoder(job.recipe.units.hubert).eval()
    load_module(encoder, job.path("hubert") / "encoder.safetensors")
    return encoder


def compare_units(
    corpus: Path, inventory: UnitInventory, mfcc_units: KMeansUnits, per_voice: int = 40
) -> dict:
    """Quality of HuBERT units and of MFCC units on held-out utterances, against the phones that
    were spoken; {} where the corpus has none."""
    if not (heard := aligned(corpus, per_voice)):
        return {}
    waves, phones, voices = zip(*heard, strict=True)
    hubert = [inventory.kmeans.assign(inventory.features(wave)) for wave in waves]
    baseline = [mfcc_units.assign(mfcc_of(wave)) for wave in waves]
    both = (("hubert", hubert), ("mfcc", baseline))
    return {name: vars(unit_quality(units, phones, voices)) for name, units in both}


def aligned(
    corpus: Path, per_voice: int
) -> list[tuple[np.ndarray, list[tuple[float, float, str]], str]]:
    """(wave, [(start s, end s, phone)], voice) of held-out utterances, as many of each voice."""
    chosen, taken = [], {}
    for u in read_utterances(corpus, audio=True, phones=True, where={"split": list(HELD_OUT)}):
        taken[u.voice] = taken.get(u.voice, 0) + 1
        if u.phones and taken[u.voice] <= per_voice:
            chosen.append((u.read(), [(p.start, p.end, p.label) for p in u.phones], u.voice))
    return chosen


def make_unit_grid(job: Job) -> dict:
    """Quality of units by layer and number of clusters, around those that the recipe chose."""
    corpus, seed, chosen = job.path("corpus"), job.recipe.seed, job.recipe.units.clusters
    if not (held_out := aligned(corpus, 20)):
        return {"rows": [], "why": "the corpus has no phones to compare units with"}
    encoder = load_encoder(job)
    speech = training_speech(corpus, GRID_SPEECH, seed + 1, voices=clustered_voices(job))
    training = [u.wave for u in speech]
    clusters = sorted({max(2, chosen * factor // 4) for factor in (1, 2, 4, 8)})
    return {"rows": list(quality_grid(encoder, training, held_out, clusters, seed))}


def make_units(job: Job) -> dict:
    """The units of every utterance."""
    settings, device = job.recipe.units.extraction, resolve_device(job.recipe.device)
    paths = job.path("corpus"), job.path("inventory"), job.work
    return extract_units(*paths, settings, device, job.shards, job.on_log)


def _hubert_settings(recipe: Recipe) -> dict:
    layer = {"layer": recipe.units.layer} if recipe.units.hubert.iterations == 2 else {}
    return recipe.units.hubert.model_dump(mode="json") | layer


def _corpus_settings(recipe: Recipe) -> dict:
    disk = any(corpus.reader != "lab" for corpus in recipe.corpora)
    return recipe.model_dump(mode="json", include={"corpora"} | ({"data"} if disk else set()))


CLUSTERING = part("units", "layer", "clusters", "kmeans_frames")
STEPS = (
    Definition("corpus", (), _corpus_settings, make_corpus, cost=Cost(threads="all", minutes=1.7)),
    Definition(
        "hubert", ("corpus",), _hubert_settings, make_hubert, cost=trained(4.0, threads="all")
    ),
    Definition(
        "inventory",
        ("corpus", "hubert"),
        CLUSTERING,
        make_inventory,
        bring=bring_inventory,
        bring_needs=_bring_needs,
        bring_settings=CLUSTERING,
        cost=Cost(threads="all", minutes=0.2),
    ),
    Definition("unit_grid", ("corpus", "hubert"), part("units", "clusters"), make_unit_grid),
    Definition(
        "units",
        ("corpus", "inventory"),
        lambda recipe: recipe.units.extraction.model_dump(mode="json"),
        make_units,
        cost=Cost(gpu=True, splittable=True, threads="all", minutes=0.8),
    ),
)
