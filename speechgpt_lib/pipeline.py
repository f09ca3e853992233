"""The whole pipeline, one function a step: what it reads, what it writes, and by which settings.  Notebooks call these in order.

Every function takes an open `Run` and returns the finished `Step`; a step whose settings and inputs are unchanged is reused, an
interrupted one resumes.  The work itself is done in the rooms; here stands only who hands what to whom.  The vocoder's steps stand in its
room, `vocoder/steps.py`, those of SpeechInstruct in `instructions/steps.py`; what all steps share, their names above all, in `steps.py`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.lab import build_corpus
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.steps import make_chain_set as make_chain_set
from speechgpt_lib.instructions.steps import make_cross_modal_set as make_cross_modal_set
from speechgpt_lib.instructions.steps import make_text_to_unit as make_text_to_unit
from speechgpt_lib.instructions.steps import make_voicing_evaluation as make_voicing_evaluation
from speechgpt_lib.language_model import generation, stages
from speechgpt_lib.language_model.model import build_model, expand_model, load_model, save_model
from speechgpt_lib.language_model.pretrained import fingerprint, load_pretrained
from speechgpt_lib.language_model.text import lab_texts
from speechgpt_lib.language_model.token_table import write_table
from speechgpt_lib.language_model.vocabulary import Vocabulary, train_text_tokenizer
from speechgpt_lib.metrics.unit_quality import unit_quality
from speechgpt_lib.metrics.wer import wer
from speechgpt_lib.recipes.schema import StageSettings
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.steps import (
    CHAIN_SET,
    CORPUS,
    CROSS_MODAL_SET,
    EXPANDED,
    HUBERT,
    INVENTORY,
    STAGE1,
    STAGE2,
    STAGE3,
    TEXT_MODEL,
    UNIT_GRID,
    UNITS,
    OnLog,
    held_out_units,
    training_options,
    training_speech,
)
from speechgpt_lib.steps import TEXT_TO_UNIT as TEXT_TO_UNIT
from speechgpt_lib.steps import VOCODER as VOCODER
from speechgpt_lib.steps import VOCODER_EVALUATION as VOCODER_EVALUATION
from speechgpt_lib.steps import VOICING_EVALUATION as VOICING_EVALUATION
from speechgpt_lib.steps import inventory_of as inventory_of
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.extract import UnitRow, extract_units, read_units
from speechgpt_lib.units.grid import quality_grid
from speechgpt_lib.units.hubert import build_encoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.mfcc import mfcc
from speechgpt_lib.units.training import cluster_layer, train_encoder, utterances_for
from speechgpt_lib.vocoder.steps import WITHOUT as WITHOUT
from speechgpt_lib.vocoder.steps import make_vocoder as make_vocoder
from speechgpt_lib.vocoder.steps import make_vocoder_evaluation as make_vocoder_evaluation
from speechgpt_lib.vocoder.steps import make_vocoder_of as make_vocoder_of


# --- 01 units -----------------------------------------------------------------------------------------------------------------------
def make_corpus(run: Run, force: bool = False) -> Step:
    settings = run.recipe.corpus
    return run.step(
        CORPUS,
        lambda work: build_corpus(settings, run.recipe.seed, work),
        settings=settings,
        force=force,
    )


def make_hubert(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    corpus, settings = run.require(CORPUS), run.recipe.units.hubert

    def make(work: Path) -> dict:
        waves = [u.wave for u in training_speech(corpus, settings.utterances, run.recipe.seed)]
        encoder, targets, summary = train_encoder(
            waves, run.recipe.units, work, training_options(run, on_log)
        )
        targets.save(work / "mfcc_centroids.safetensors")
        save_module(encoder, work / "encoder.safetensors")
        return summary

    section = settings.model_dump(mode="json") | (
        {"layer": run.recipe.units.layer} if settings.iterations == 2 else {}
    )
    return run.step(HUBERT, make, settings=section, inputs={"corpus": corpus}, force=force)


def make_inventory(run: Run, force: bool = False) -> Step:
    """k-means on a hidden layer of the encoder, and how good its units are beside MFCC units."""
    corpus, hubert, settings = run.require(CORPUS), run.require(HUBERT), run.recipe.units

    def make(work: Path) -> dict:
        encoder = build_encoder(settings.hubert).eval()
        load_module(encoder, hubert.path / "encoder.safetensors")
        speech = training_speech(
            corpus, utterances_for(settings.kmeans_frames), run.recipe.seed + 1
        )
        inventory = cluster_layer(encoder, [u.wave for u in speech], settings, run.recipe.seed)
        inventory.save(work)
        return {
            "id": inventory.id,
            **compare_units(
                run, inventory, KMeansUnits.load(hubert.path / "mfcc_centroids.safetensors")
            ),
        }

    section = {
        "layer": settings.layer,
        "clusters": settings.clusters,
        "frames": settings.kmeans_frames,
    }
    return run.step(
        INVENTORY, make, settings=section, inputs={"corpus": corpus, "hubert": hubert}, force=force
    )


def compare_units(
    run: Run, inventory: UnitInventory, mfcc_units: KMeansUnits, per_voice: int = 40
) -> dict:
    """Quality of HuBERT units and of MFCC units on the same held-out utterances, against the phones that were spoken."""
    from speechgpt_lib.units.hubert import normalise_utterance

    waves, phones, voices = zip(*_aligned(run, per_voice), strict=True)
    hubert = [inventory.kmeans.assign(inventory.features(wave)) for wave in waves]
    baseline = [
        mfcc_units.assign(normalise_utterance(mfcc(torch.from_numpy(wave))).numpy())
        for wave in waves
    ]
    return {
        name: vars(unit_quality(units, phones, voices))
        for name, units in (("hubert", hubert), ("mfcc", baseline))
    }


def make_unit_grid(run: Run, force: bool = False, utterances: int = 300) -> Step:
    """Quality of units by layer and number of clusters, beside the layer and number that the recipe chose."""
    corpus, hubert, settings = run.require(CORPUS), run.require(HUBERT), run.recipe.units

    def make(work: Path) -> dict:
        encoder = build_encoder(settings.hubert).eval()
        load_module(encoder, hubert.path / "encoder.safetensors")
        training = [u.wave for u in training_speech(corpus, utterances, run.recipe.seed + 1)]
        clusters = sorted({max(2, settings.clusters * factor // 4) for factor in (1, 2, 4, 8)})
        return {
            "rows": list(
                quality_grid(encoder, training, _aligned(run, 20), clusters, run.recipe.seed)
            )
        }

    return run.step(
        UNIT_GRID,
        make,
        settings={"clusters": settings.clusters},
        inputs={"corpus": corpus, "hubert": hubert},
        force=force,
    )


def _aligned(
    run: Run, per_voice: int
) -> list[tuple[np.ndarray, list[tuple[float, float, str]], str]]:
    """Held-out utterances with their phones, the same number of each voice: (wave, [(start s, end s, label)], voice)."""
    chosen, taken = [], {}
    for u in read_utterances(
        run.require(CORPUS).path, audio=True, phones=True, where={"split": ["test", "test_voice"]}
    ):
        taken[u.voice] = taken.get(u.voice, 0) + 1
        if taken[u.voice] <= per_voice:
            chosen.append((u.wave, [(p.start, p.end, p.label) for p in u.phones], u.voice))
    return chosen


def make_units(run: Run, force: bool = False) -> Step:
    corpus, inventory = run.require(CORPUS), run.require(INVENTORY)

    def make(work: Path) -> dict:
        return extract_units(corpus.path, inventory.path, inventory.metrics["id"], work)

    return run.step(
        UNITS, make, settings={}, inputs={"corpus": corpus, "inventory": inventory}, force=force
    )


# --- 05 text LLM and vocabulary -----------------------------------------------------------------------------------------------------
def make_text_model(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    """The text LLM: trained here, or a published LLaMA from a folder on disk."""
    settings = run.recipe.language_model

    def make(work: Path) -> dict:
        if settings.pretrained:
            (model, vocabulary), summary = load_pretrained(settings), {}
        else:
            words = [
                part.value
                for row in _example_rows()
                for part in row.prompt + row.answer
                if part.kind == "template"
            ]
            vocabulary = Vocabulary(
                train_text_tokenizer([*lab_texts(run.recipe.seed), *words], settings.vocabulary)
            )
            model = build_model(settings, vocabulary.size, run.recipe.seed)
            plan = stages.text_plan(vocabulary, settings.optimization.steps, run.recipe.seed)
            stage = StageSettings(
                tokens_per_batch=settings.tokens_per_batch, optimization=settings.optimization
            )
            summary = stages.fit(model, plan, stage, work, training_options(run, on_log))
        save_model(model, vocabulary, work)
        accuracy = stages.text_accuracy(model, vocabulary)
        parameters = sum(p.numel() for p in model.parameters())
        return summary | {
            "held_out_text_accuracy": accuracy,
            "parameters": parameters,
            "vocabulary": vocabulary.size,
        }

    section = settings.model_dump(mode="json") | (
        {"files": fingerprint(settings.pretrained)} if settings.pretrained else {}
    )
    return run.step(TEXT_MODEL, make, settings=section, force=force)


def make_expanded_model(run: Run, force: bool = False) -> Step:
    """Add units and markers to the vocabulary, once and before any stage."""
    text_model, inventory, settings = (
        run.require(TEXT_MODEL),
        run.require(INVENTORY),
        run.recipe.language_model,
    )

    def make(work: Path) -> dict:
        model, before = load_model(text_model.path)
        after = before.expand(run.recipe.units.clusters, inventory.metrics["id"])
        centroids = (
            inventory_of(run).kmeans.centroids if settings.new_embeddings == "centroids" else None
        )
        probe = torch.tensor([[before.begin, *before.encode_text("the big dog is in the house")]])
        with torch.inference_mode():
            old_logits = model(probe).logits
            expand_model(
                model,
                before,
                after,
                run.recipe.seed,
                centroids=centroids,
                multiple=settings.multiple,
            )
            change = (model(probe).logits[..., : before.size] - old_logits).abs().max().item()
        save_model(model, after, work)
        return {"before": before.size, "after": after.size, "largest_change_of_old_logits": change}

    section = {"new_embeddings": settings.new_embeddings, "multiple": settings.multiple}
    return run.step(
        EXPANDED,
        make,
        settings=section,
        inputs={"text_model": text_model, "inventory": inventory},
        force=force,
    )


# --- 06, 07, 08 the three stages ----------------------------------------------------------------------------------------------------
def _start(run: Run, folder: Path):
    """The model and vocabulary that a stage begins with, on the device it trains on."""
    model, vocabulary = load_model(folder)
    return model.to(resolve_device(run.recipe.device)), vocabulary


def make_stage1(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    start, units, settings = run.require(EXPANDED), run.require(UNITS), run.recipe.stage1

    def make(work: Path) -> dict:
        model, vocabulary = _start(run, start.path)
        speech = read_units(units.path, vocabulary.inventory, {"split": ["train", "unlabelled"]})
        rows = (stages.unit_row(vocabulary, row.units, row.id) for row in speech)
        held_out = [row.units for row in held_out_units(run, vocabulary.inventory)][:200]
        before = stages.unit_perplexity(model, vocabulary, held_out)
        with _tokens(work) as tokens:
            own = write_table(tokens / "units", rows, vocabulary.size)
            plan = stages.stage1_plan(vocabulary, own, settings.replay, run.recipe.seed)
            summary = _fit(run, model, vocabulary, plan, settings, work, on_log)
        save_model(model, vocabulary, work)
        after = stages.unit_perplexity(model, vocabulary, held_out)
        return summary | {"unit_perplexity_before": before, "unit_perplexity": after}

    return run.step(
        STAGE1, make, settings=settings, inputs={"model": start, "units": units}, force=force
    )


def make_stage2(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    start, units, instructions = (
        run.require(STAGE1),
        run.require(UNITS),
        run.require(CROSS_MODAL_SET),
    )
    settings, templates = run.recipe.stage2, run.recipe.instructions

    def make(work: Path) -> dict:
        model, vocabulary = _start(run, start.path)
        splits = {"split": ["train", "unlabelled"]}
        speech = (
            [row.units for row in read_units(units.path, vocabulary.inventory, splits)]
            if settings.replay.get("units")
            else []
        )
        held_out = held_out_units(run, vocabulary.inventory)[:64]
        before = _transcription_wer(model, vocabulary, held_out, templates.templates)
        with _tokens(work) as tokens:
            tasks = []
            for task in ("asr", "tts"):
                records = (
                    r
                    for r in sets.read_set(instructions.path, vocabulary.inventory)
                    if r["task"] == task
                )
                tasks.append(stages.encoded(records, vocabulary, templates, tokens / task))
            plan = stages.stage2_plan(
                vocabulary, *tasks, speech, settings, templates.text_weight, run.recipe.seed
            )
            summary = _fit(run, model, vocabulary, plan, settings, work, on_log)
        save_model(model, vocabulary, work)
        return summary | {
            "asr_wer_before": before,
            "asr_wer": _transcription_wer(model, vocabulary, held_out, templates.templates),
        }

    inputs = {"model": start, "units": units, "instructions": instructions}
    section = {"stage": settings.model_dump(mode="json"), **_row_settings(templates)}
    return run.step(STAGE2, make, settings=section, inputs=inputs, force=force)


def make_stage3(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    start, instructions = run.require(STAGE2), run.require(CHAIN_SET)
    settings, templates = run.recipe.stage3, run.recipe.instructions

    def make(work: Path) -> dict:
        model, vocabulary = _start(run, start.path)
        questions = [
            row for row in held_out_units(run, vocabulary.inventory) if row.kind in world.KINDS
        ][:64]
        before = _chain_accuracy(model, vocabulary, questions, templates.templates)
        new_tokens = (
            range(vocabulary.text_size, vocabulary.size) if settings.lora.new_tokens else ()
        )
        adapted = stages.add_lora(model, settings.lora, run.recipe.seed, new_tokens)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        with _tokens(work) as tokens:
            records = sets.read_set(instructions.path, vocabulary.inventory)
            own = list(stages.encoded(records, vocabulary, templates, tokens / "chains"))
            summary = _fit(run, model, vocabulary, lambda epoch, step: own, settings, work, on_log)
        stages.save_adapter(adapted, work)
        after = _chain_accuracy(model, vocabulary, questions, templates.templates)
        return summary | {
            "trainable_parameters": trainable,
            "chain_accuracy_before": before,
            "chain_accuracy": after,
        }

    section = {"stage": settings.model_dump(mode="json"), **_row_settings(templates)}
    return run.step(
        STAGE3,
        make,
        settings=section,
        inputs={"model": start, "instructions": instructions},
        force=force,
    )


def _fit(
    run: Run, model, vocabulary, plan, settings: StageSettings, work: Path, on_log: OnLog
) -> dict:
    options = training_options(run, on_log)
    return stages.fit(model, plan, settings, work, options, vocabulary.ends)


@contextlib.contextmanager
def _tokens(work: Path) -> Iterator[Path]:
    """A folder for encoded rows, which are made anew by every attempt and are no result."""
    folder = work / "tokens"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _row_settings(instructions) -> dict:
    """What of the instruction settings changes how rows become tokens."""
    return instructions.model_dump(mode="json", include={"templates", "loss", "text_weight"})


# --- what the steps share -----------------------------------------------------------------------------------------------------------
def _transcription_wer(model, vocabulary: Vocabulary, rows: list[UnitRow], templates: str) -> float:
    return wer(
        [row.text for row in rows],
        generation.transcribe(model, vocabulary, [row.units for row in rows], templates),
    )


def _chain_accuracy(model, vocabulary: Vocabulary, rows: list[UnitRow], templates: str) -> float:
    reply = "speech" if templates == "release" else "text"  # the release knows one format
    chains = generation.answer(model, vocabulary, [row.units for row in rows], reply, templates)
    return float(np.mean([chain.ta == row.answer for chain, row in zip(chains, rows, strict=True)]))


def _example_rows() -> list:
    """One row of every template, so that the tokenizer has seen their words."""
    from speechgpt_lib.instructions.descriptions import load_descriptions
    from speechgpt_lib.instructions.templates import CHAIN_FORMATS, chain_row, cross_modal_row

    units = np.array([0])
    rows = [chain_row(f, "a", "b", units, units) for f in CHAIN_FORMATS] * 20
    for task in ("asr", "tts"):
        rows += [cross_modal_row(task, d, "a", units) for d in load_descriptions(task)]
    return rows
