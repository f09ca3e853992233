"""The vocoder's steps of a run: train it, measure it, and train another for other numbers of units."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.evaluation.vocoder import (
    Original,
    evaluate_vocoder,
    judge_originals,
    judges_if_installed,
)
from speechgpt_lib.instructions import sets
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.steps import (
    CORPUS,
    HUBERT,
    INVENTORY,
    UNITS,
    VOCODER,
    VOCODER_EVALUATION,
    OnLog,
    held_out_units,
    inventory_of,
    training_options,
    training_speech,
)
from speechgpt_lib.training.checkpoints import load_module
from speechgpt_lib.units.extract import read_units
from speechgpt_lib.units.hubert import build_encoder
from speechgpt_lib.units.sequence import merge
from speechgpt_lib.units.training import cluster_layer, utterances_for
from speechgpt_lib.vocoder.speech import SpeechInMemory
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.vocoder.training import train_durations, train_vocoder

WITHOUT = "without_discriminators"  # folder beside the vocoder: the one to compare with


def make_vocoder(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    corpus, units, inventory = run.require(CORPUS), run.require(UNITS), run.require(INVENTORY)

    def make(work: Path) -> dict:
        rows = read_units(units.path, inventory.metrics["id"], _vocoder_speech(run))
        frames = {row.id: row.frames for row in rows}
        return _train_vocoder(
            run, frames, run.recipe.units.clusters, inventory.metrics["id"], work, on_log
        )

    return run.step(
        VOCODER,
        make,
        settings=run.recipe.vocoder,
        inputs={"corpus": corpus, "units": units},
        version=2,
        force=force,
    )


def make_vocoder_evaluation(run: Run, force: bool = False) -> Step:
    """Held-out speech through units and back, measured in sound, units and words; also without discriminators, where that was trained."""
    units, vocoder, count = (
        run.require(UNITS),
        run.require(VOCODER),
        run.recipe.evaluation.vocoder_utterances,
    )

    def make(work: Path) -> dict:
        inventory, judges = inventory_of(run), judges_if_installed(run.say)
        originals = _originals(run, inventory.id, count)
        figures = {"utterances": len(originals)} | (
            {"original": judge_originals(originals, judges)} if judges else {}
        )
        figures |= evaluate_vocoder(
            Vocoder.load(vocoder.path, inventory.id), originals, inventory, judges
        )
        if (vocoder.path / WITHOUT).is_dir():
            alone = Vocoder.load(vocoder.path / WITHOUT, inventory.id)
            figures["without_discriminators"] = evaluate_vocoder(
                alone, originals, inventory, judges
            )
        return figures

    section = {"utterances": count, "seed": run.recipe.seed}
    return run.step(
        VOCODER_EVALUATION,
        make,
        settings=section,
        inputs={"units": units, "vocoder": vocoder},
        force=force,
    )


def make_vocoder_of(run: Run, clusters: int, force: bool = False, on_log: OnLog = None) -> Step:
    """The same vocoder for another number of units, to hear what fewer or more of them keep.  No other step needs it.

    Its folder holds the inventory, the vocoder, and the figures of its evaluation on the same held-out sentences.
    """
    corpus, hubert, settings = run.require(CORPUS), run.require(HUBERT), run.recipe.units

    def make(work: Path) -> dict:
        encoder = build_encoder(settings.hubert).eval()
        load_module(encoder, hubert.path / "encoder.safetensors")
        speech = training_speech(
            corpus, utterances_for(settings.kmeans_frames), run.recipe.seed + 1
        )
        other = settings.model_copy(update={"clusters": clusters})
        inventory = cluster_layer(encoder, [u.wave for u in speech], other, run.recipe.seed)
        inventory.save(work / "inventory")
        spoken = read_utterances(corpus.path, audio=True, where=_vocoder_speech(run))
        frames = {u.id: inventory.kmeans.assign(inventory.features(u.wave)) for u in spoken}
        summary = _train_vocoder(run, frames, clusters, inventory.id, work, on_log)
        originals = _originals(run, None, run.recipe.evaluation.vocoder_utterances)
        originals = [
            replace(o, **dict(zip(("units", "durations"), inventory.encode(o.wave), strict=True)))
            for o in originals
        ]
        judges = judges_if_installed(run.say)
        return (
            summary
            | {"id": inventory.id}
            | evaluate_vocoder(Vocoder.load(work, inventory.id), originals, inventory, judges)
        )

    section = {"clusters": clusters, "vocoder": run.recipe.vocoder.model_dump(mode="json")}
    return run.step(
        f"{VOCODER}_{clusters}",
        make,
        settings=section,
        inputs={"corpus": corpus, "hubert": hubert},
        force=force,
    )


def _vocoder_speech(run: Run) -> dict:
    """Which utterances the vocoder learns from."""
    corpus = run.recipe.corpus
    if run.recipe.vocoder.all_voices:
        return {"split": ["train", "unlabelled"]}
    return {"voice": corpus.target_voice, "split": "train"}


def _train_vocoder(
    run: Run, frames: dict[str, np.ndarray], count: int, inventory: str, work: Path, on_log: OnLog
) -> dict:
    """Utterance → frames of units, and the speech in the corpus → generator and duration predictor in `work`."""
    settings, options, target = (
        run.recipe.vocoder,
        training_options(run, on_log),
        run.recipe.corpus.target_voice,
    )
    spoken = sets.shuffled(
        list(read_utterances(run.require(CORPUS).path, audio=True, where=_vocoder_speech(run))),
        run.recipe.seed,
    )
    spoken = sorted(
        spoken[: settings.utterances], key=lambda u: u.voice != target
    )  # its voice is the one spoken by default
    speech = SpeechInMemory(
        [(frames[u.id], u.wave) for u in spoken],
        count,
        [u.voice for u in spoken] if settings.all_voices else None,
    )
    checkpoints = work / "checkpoints"
    sample = frames[spoken[0].id]
    generator, summary = train_vocoder(
        speech, count, settings, checkpoints / "generator", options, sample=sample
    )
    # In several processes only the first has the checkpoint to start from; comparing is a lesson for one.
    compared = (
        settings.compare
        and run.recipe.processes == 1
        and 0 < summary["adversarial_steps"] < summary["steps"]
    )
    if compared:
        alone, _ = train_vocoder(
            speech,
            count,
            settings,
            checkpoints / "alone",
            options,
            sample=sample,
            joined_from=checkpoints / "generator",
        )
    merged = [merge(row) for row in frames.values()]
    durations, duration_summary = train_durations(
        merged, count, settings, checkpoints / "durations", options
    )
    shutil.copy(
        checkpoints / "generator" / "metrics.jsonl", work
    )  # not moved: a step that is killed here must still resume
    if (checkpoints / "generator" / "samples").is_dir():  # the first process listens
        shutil.copytree(checkpoints / "generator" / "samples", work / "samples", dirs_exist_ok=True)
    if compared:
        Vocoder(alone, copy.deepcopy(durations), inventory, settings, speech.names).save(
            work / WITHOUT
        )
    Vocoder(generator, durations, inventory, settings, speech.names).save(work)
    return {"generator": summary, "durations": duration_summary}


def _originals(run: Run, inventory_id: str | None, count: int) -> list[Original]:
    """Held-out sentences of the target voice, with their sound."""
    rows = [
        row
        for row in held_out_units(run, inventory_id)
        if row.voice == run.recipe.corpus.target_voice
    ][:count]
    chosen = {row.id: row for row in rows}
    spoken = read_utterances(run.require(CORPUS).path, audio=True, where={"id": list(chosen)})
    return [Original(u.wave, u.text, chosen[u.id].units, chosen[u.id].durations) for u in spoken]
