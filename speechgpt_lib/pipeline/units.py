"""The steps of notebook 01: the corpus, HuBERT, the unit inventory and how good it is, and the
units of every utterance."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.corpora.audio import samples_of, to_16_bits
from speechgpt_lib.corpora.build import build_table, open_corpora
from speechgpt_lib.corpora.corpus import HELD_OUT, LEARNED
from speechgpt_lib.corpora.lab import LabReader, speak_shards, voices_of_many
from speechgpt_lib.corpora.natural import NATURAL_VOICES
from speechgpt_lib.corpora.tables import Utterance, hear, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics.unit_quality import unit_quality
from speechgpt_lib.pipeline.imports import encoder_source, import_inventory
from speechgpt_lib.pipeline.step import Cost, Definition, Job, part, trained
from speechgpt_lib.recipes.schema import HearingSettings, Recipe
from speechgpt_lib.runs.seeds import rank, shuffled
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.extract import extract_units
from speechgpt_lib.units.foreign import encoder_from
from speechgpt_lib.units.hearing import Pair, hear_past_voices, same_moments
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

# As many ids are shuffled in memory; of more, those with the smallest hashes are taken.
MOST_SHUFFLED = 100_000
GRID_SPEECH = 300  # utterances from which the grid's centroids are made


def training_speech(recipe: Recipe, corpus: Path, count: int, seed: int) -> Iterator[Utterance]:
    """A seeded sample of training utterances over all voices, those that can be read.

    The lab's many speakers are not among them: an encoder as small as the lab's, and its clusters,
    come out worse for them (PNMI 0.605 instead of 0.679); it hears them afterwards.
    """
    labs = [corpus for corpus in recipe.corpora if corpus.reader == "lab"]
    many = {voice for lab in labs for voice in voices_of_many(lab)}
    rows = read_utterances(corpus, where={"split": list(LEARNED)})
    identities = [u.id for u in rows if u.voice not in many]
    if len(identities) > MOST_SHUFFLED:
        chosen = set(heapq.nsmallest(count, identities, key=lambda i: rank(i, seed)))
    else:
        chosen = set(shuffled(identities, seed)[:count])
    return hear(corpus, {"id": chosen})


def make_corpus(job: Job) -> dict:
    """The utterance table of all corpora."""
    return build_table(job.recipe, job.work, job.run.say)


def make_hubert(job: Job) -> dict:
    """Pre-train the encoder on a sample of all voices."""
    settings = job.recipe.units.hubert
    chosen = job.recipe, job.path("corpus"), settings.utterances, job.recipe.seed
    waves = [to_16_bits(u.wave) for u in training_speech(*chosen)]  # half the memory
    parts = waves, job.recipe.units, job.work, job.training
    encoder, targets, summary = train_encoder(*parts)
    targets.save(job.work / "mfcc_centroids.safetensors")
    save_module(encoder, job.work / "encoder.safetensors")
    heard = settings.optimization.steps * settings.batch_size * settings.crop_seconds  # s
    return summary | {"hours": round(heard / 3600, 3)}


def make_inventory(job: Job) -> dict:
    """k-means on a hidden layer of the encoder, which then learns to hear past voices, and how good
    the units are beside MFCC units."""
    settings, seed = job.recipe.units, job.recipe.seed
    corpus, encoder = job.path("corpus"), load_encoder(job)
    count = utterances_for(settings.kmeans_frames)
    speech = training_speech(job.recipe, corpus, count, seed + 1)
    inventory = cluster_layer(encoder, [u.wave for u in speech], settings, seed)
    kinds, facts = {"hubert": inventory}, {}
    if hearing := hearing_of(job.recipe):
        others, own = twice_spoken(job, inventory, hearing)
        parts = hearing, job.work, replace(job.training, world_size=1)
        kinds["before_hearing"] = inventory
        kinds["hubert"], facts = hear_past_voices(inventory, others, own, *parts)
    elif settings.hearing:
        why = "nobody here can say again, with phones, what others said"
        job.run.say(f"the encoder does not learn to hear past voices: {why}")
    kinds["hubert"].save(job.work)
    mfcc_units = KMeansUnits.load(job.path("hubert") / "mfcc_centroids.safetensors")
    quality = compare_units(corpus, kinds, mfcc_units)
    facts = {"hearing": facts} if facts else {}
    return {"id": kinds["hubert"].id, "clusters": inventory.count, **quality, **facts}


def hearing_of(recipe: Recipe) -> HearingSettings | None:
    """The settings by which the encoder learns to hear past voices, or None where it can't: what
    others recorded can't be spoken again here, and a natural voice tells no phones."""
    again = all(
        corpus.reader == "lab" and corpus.target_voice not in NATURAL_VOICES
        for corpus in recipe.corpora
    )
    return recipe.units.hearing if again else None


def make_readings(job: Job) -> dict:
    """What others said, said again by the target voice: an utterance table with the same ids."""
    if (hearing := hearing_of(job.recipe)) is None:
        raise UserError("nobody here can say again, with phones, what others said")
    lab = open_corpora(job.recipe).members[0]
    ids = _to_hear(job, lab, answering=False, count=hearing.utterances)
    others = read_utterances(job.path("corpus"), phones=True, where={"id": ids}) if ids else ()
    plan = lab.in_target_voice([u for u in others if u.phones], job.recipe.seed)
    speak_shards(plan, job.work, torch.get_num_threads())
    return {"utterances": len(plan)}


def _to_hear(job: Job, lab: LabReader, answering: bool, count: int) -> set[str]:
    """Ids of what the target voice said to learn from, or others; the many speakers first."""
    rows, many = read_utterances(job.path("corpus")), voices_of_many(lab.settings)
    rows = shuffled([u for u in rows if u.split in LEARNED], job.recipe.seed + 2)
    rows.sort(key=lambda u: u.voice not in many)
    return set([u.id for u in rows if lab.answers(u) == answering][:count])


def twice_spoken(
    job: Job, inventory: UnitInventory, settings: HearingSettings
) -> tuple[list[Pair], list[Pair]]:
    """What others said, with the units of the target voice, which said it again (`readings`); and
    what the target voice said, with its own."""
    corpus, readings = job.path("corpus"), job.path("readings")
    lab = open_corpora(job.recipe).members[0]

    def units(wave: np.ndarray) -> np.ndarray:
        return inventory.kmeans.assign(inventory.features(samples_of(wave)))

    own, others, said = [], [], {}
    ids = _to_hear(job, lab, answering=True, count=settings.own_utterances)
    for u in hear(corpus, {"id": ids}) if ids else ():
        wave = to_16_bits(u.wave)  # half the memory
        own.append((wave, units(wave)))
    if list(readings.glob("*.parquet")):  # else there are no others
        said = {u.id: (u.phones, units(u.wave)) for u in hear(readings, {}, phones=True)}
    for u in hear(corpus, {"id": said.keys()}, phones=True) if said else ():
        phones, given = said[u.id]
        moments = same_moments(u.phones, phones, frame_count(len(u.wave)), len(given))
        others.append((to_16_bits(u.wave), given[moments]))
    return others, own


def bring_inventory(job: Job) -> dict:
    """An inventory that others made, or k-means of this run's speech on an encoder of theirs."""
    source, settings = job.recipe.imports.inventory, job.recipe.units
    if isinstance(source, str) or source.centroids is not None:
        return import_inventory(job)
    encoder, normalize = encoder_from(encoder_source(job, source))
    count, seed = utterances_for(settings.kmeans_frames), job.recipe.seed + 1
    waves = [u.wave for u in training_speech(job.recipe, job.path("corpus"), count, seed)]
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
    corpus: Path,
    inventories: dict[str, UnitInventory],
    mfcc_units: KMeansUnits,
    per_voice: int = 40,
) -> dict:
    """Quality of each inventory's units and of MFCC units on held-out utterances, against the
    phones that were spoken; {} where the corpus has none."""
    if not (heard := aligned(corpus, per_voice)):
        return {}
    waves, phones, voices = zip(*heard, strict=True)
    kinds = {
        name: [made.kmeans.assign(made.features(wave)) for wave in waves]
        for name, made in inventories.items()
    }
    kinds["mfcc"] = [mfcc_units.assign(mfcc_of(wave)) for wave in waves]
    return {name: vars(unit_quality(units, phones, voices)) for name, units in kinds.items()}


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
    speech = training_speech(job.recipe, corpus, GRID_SPEECH, seed + 1)
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


def _inventory_needs(recipe: Recipe) -> tuple[str, ...]:
    return ("corpus", "hubert") + (("readings",) if hearing_of(recipe) else ())


def _readings_settings(recipe: Recipe) -> dict:
    return {} if (hearing := hearing_of(recipe)) is None else {"utterances": hearing.utterances}


def _inventory_settings(recipe: Recipe) -> dict:
    hearing = hearing_of(recipe)
    heard = {} if hearing is None else {"hearing": hearing.model_dump(mode="json")}
    return CLUSTERING(recipe) | heard


STEPS = (
    Definition("corpus", (), _corpus_settings, make_corpus, cost=Cost(threads="all", minutes=1.7)),
    Definition("hubert", ("corpus",), _hubert_settings, make_hubert, cost=trained(4.0)),
    Definition("readings", ("corpus",), _readings_settings, make_readings, cost=Cost(minutes=1.0)),
    Definition(
        "inventory",
        _inventory_needs,
        _inventory_settings,
        make_inventory,
        bring=bring_inventory,
        bring_needs=_bring_needs,
        bring_settings=CLUSTERING,
        cost=Cost(gpu=True, threads="all", minutes=2.0),
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
