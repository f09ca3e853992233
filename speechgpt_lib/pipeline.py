"""The whole pipeline, one function a step: what it reads, what it writes, and by which settings.  Notebooks call these in order.

Every function takes an open `Run` and returns the finished `Step`; a step whose settings and inputs are unchanged is reused, an
interrupted one resumes.  The work itself is done in the rooms; here stands only who hands what to whom.  The vocoder's steps stand in its
room, `vocoder/steps.py`; what all steps share, their names above all, in `steps.py`.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.lab import build_corpus
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import sets
from speechgpt_lib.language_model import generation, stages
from speechgpt_lib.language_model.model import build_model, expand_model, load_model, save_model
from speechgpt_lib.language_model.text import lab_texts
from speechgpt_lib.language_model.vocabulary import Vocabulary, train_text_tokenizer
from speechgpt_lib.metrics.unit_errors import unit_error_rate
from speechgpt_lib.metrics.unit_quality import unit_quality
from speechgpt_lib.metrics.wer import wer
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
    TEXT_TO_UNIT,
    UNIT_GRID,
    UNITS,
    OnLog,
    held_out_units,
    training_options,
    training_speech,
)
from speechgpt_lib.steps import VOCODER as VOCODER
from speechgpt_lib.steps import VOCODER_EVALUATION as VOCODER_EVALUATION
from speechgpt_lib.steps import inventory_of as inventory_of
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.text_to_unit.training import train_text_to_unit
from speechgpt_lib.training.checkpoints import load_module, save_module
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
    return run.step(CORPUS, lambda work: build_corpus(settings, run.recipe.seed, work), settings=settings, force=force)


def make_hubert(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    corpus, settings = run.require(CORPUS), run.recipe.units.hubert

    def make(work: Path) -> dict:
        waves = [u.wave for u in training_speech(corpus, settings.utterances, run.recipe.seed)]
        encoder, targets, summary = train_encoder(waves, run.recipe.units, work, **training_options(run, on_log))
        targets.save(work / "mfcc_centroids.safetensors")
        save_module(encoder, work / "encoder.safetensors")
        return summary

    section = settings.model_dump(mode="json") | ({"layer": run.recipe.units.layer} if settings.iterations == 2 else {})
    return run.step(HUBERT, make, settings=section, inputs={"corpus": corpus}, force=force)


def make_inventory(run: Run, force: bool = False) -> Step:
    """k-means on a hidden layer of the encoder, and how good its units are beside MFCC units."""
    corpus, hubert, settings = run.require(CORPUS), run.require(HUBERT), run.recipe.units

    def make(work: Path) -> dict:
        encoder = build_encoder(settings.hubert).eval()
        load_module(encoder, hubert.path / "encoder.safetensors")
        speech = training_speech(corpus, utterances_for(settings.kmeans_frames), run.recipe.seed + 1)
        inventory = cluster_layer(encoder, [u.wave for u in speech], settings, run.recipe.seed)
        inventory.save(work)
        return {
            "id": inventory.id,
            **compare_units(run, inventory, KMeansUnits.load(hubert.path / "mfcc_centroids.safetensors")),
        }

    section = {"layer": settings.layer, "clusters": settings.clusters, "frames": settings.kmeans_frames}
    return run.step(INVENTORY, make, settings=section, inputs={"corpus": corpus, "hubert": hubert}, force=force)


def compare_units(run: Run, inventory: UnitInventory, mfcc_units: KMeansUnits, per_voice: int = 40) -> dict:
    """Quality of HuBERT units and of MFCC units on the same held-out utterances, against the phones that were spoken."""
    from speechgpt_lib.units.hubert import normalise_utterance

    waves, phones, voices = zip(*_aligned(run, per_voice), strict=True)
    hubert = [inventory.kmeans.assign(inventory.features(wave)) for wave in waves]
    baseline = [mfcc_units.assign(normalise_utterance(mfcc(torch.from_numpy(wave))).numpy()) for wave in waves]
    return {name: vars(unit_quality(units, phones, voices)) for name, units in (("hubert", hubert), ("mfcc", baseline))}


def make_unit_grid(run: Run, force: bool = False, utterances: int = 300) -> Step:
    """Quality of units by layer and number of clusters, beside the layer and number that the recipe chose."""
    corpus, hubert, settings = run.require(CORPUS), run.require(HUBERT), run.recipe.units

    def make(work: Path) -> dict:
        encoder = build_encoder(settings.hubert).eval()
        load_module(encoder, hubert.path / "encoder.safetensors")
        training = [u.wave for u in training_speech(corpus, utterances, run.recipe.seed + 1)]
        clusters = sorted({max(2, settings.clusters * factor // 4) for factor in (1, 2, 4, 8)})
        return {"rows": list(quality_grid(encoder, training, _aligned(run, 20), clusters, run.recipe.seed))}

    return run.step(UNIT_GRID, make, settings={"clusters": settings.clusters}, inputs={"corpus": corpus, "hubert": hubert}, force=force)


def _aligned(run: Run, per_voice: int) -> list[tuple[np.ndarray, list[tuple[float, float, str]], str]]:
    """Held-out utterances with their phones, the same number of each voice: (wave, [(start s, end s, label)], voice)."""
    chosen, taken = [], {}
    for u in read_utterances(run.require(CORPUS).path, audio=True, phones=True, where={"split": ["test", "test_voice"]}):
        taken[u.voice] = taken.get(u.voice, 0) + 1
        if taken[u.voice] <= per_voice:
            chosen.append((u.wave, [(p.start, p.end, p.label) for p in u.phones], u.voice))
    return chosen


def make_units(run: Run, force: bool = False) -> Step:
    corpus, inventory = run.require(CORPUS), run.require(INVENTORY)

    def make(work: Path) -> dict:
        return extract_units(corpus.path, inventory.path, inventory.metrics["id"], work)

    return run.step(UNITS, make, settings={}, inputs={"corpus": corpus, "inventory": inventory}, force=force)


# --- 03 and 04 SpeechInstruct -------------------------------------------------------------------------------------------------------
def make_cross_modal_set(run: Run, force: bool = False) -> Step:
    units, inventory, corpus = run.require(UNITS), run.require(INVENTORY), run.recipe.corpus

    def make(work: Path) -> dict:
        rows = read_units(units.path, inventory.metrics["id"], {"split": "train"})
        records = sets.cross_modal_records(rows, corpus.target_voice, run.recipe.seed)
        path, identity = work / "cross_modal.parquet", inventory.metrics["id"]
        count = sets.write_set(path, records, sets.CROSS_MODAL_SCHEMA, identity)
        return {"rows": count, "tasks": sets.split_counts(sets.read_set(path, identity), "task")}

    return run.step(CROSS_MODAL_SET, make, settings={"voice": corpus.target_voice}, inputs={"units": units}, force=force)


def make_text_to_unit(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    units, inventory, settings = run.require(UNITS), run.require(INVENTORY), run.recipe.text_to_unit
    voice = run.recipe.corpus.target_voice

    def make(work: Path) -> dict:
        pairs = [(r.text, r.units) for r in read_units(units.path, inventory.metrics["id"], {"voice": voice, "split": "train"})]
        count = run.recipe.units.clusters
        model, summary = train_text_to_unit(
            pairs, count, settings, work, inventory_id=inventory.metrics["id"], **training_options(run, on_log)
        )
        model.save(work)
        test = list(read_units(units.path, None, {"voice": voice, "split": "test"}))[:48]
        made = model.generate([row.text for row in test], beams=settings.beams)
        return summary | {"held_out_unit_error_rate": unit_error_rate([row.units for row in test], made)}

    return run.step(TEXT_TO_UNIT, make, settings=settings, inputs={"units": units}, force=force)


def make_chain_set(run: Run, force: bool = False) -> Step:
    """Quadruplets: spoken questions of the corpus and questions voiced by the text-to-unit model; every answer is voiced by it."""
    units, inventory, voicing = run.require(UNITS), run.require(INVENTORY), run.require(TEXT_TO_UNIT)
    settings, identity = run.recipe.instructions, inventory.metrics["id"]

    def make(work: Path) -> dict:
        model = TextToUnit.load(voicing.path)
        spoken = list(read_units(units.path, identity, {"split": "train", "kind": list(world.KINDS)}))
        dialogues = [(row.id, row.kind, row.text, row.answer, row.units) for row in spoken]
        rng = random.Random(f"written dialogues {run.recipe.seed}")
        written = [q for q in (world.sample_question(rng) for _ in range(settings.written_dialogues)) if not world.is_held_out(q.text)]
        voiced = model.generate([q.text for q in written], beams=run.recipe.text_to_unit.beams)
        dialogues += [(f"t{k:06d}", q.kind, q.text, q.answer, u) for k, (q, u) in enumerate(zip(written, voiced, strict=True)) if len(u)]
        answers = sorted({answer for _, _, _, answer, _ in dialogues})
        if settings.answers_from == "speech":
            responses = _spoken_answers(run, units, identity, answers)
        else:
            responses = dict(zip(answers, model.generate(answers, beams=run.recipe.text_to_unit.beams), strict=True))
        records = sets.chain_records(dialogues, responses, settings.chain_shares, run.recipe.seed)
        count = sets.write_set(work / "chain.parquet", records, sets.CHAIN_SCHEMA, identity)
        kept = list(sets.read_set(work / "chain.parquet", identity))
        return {
            "rows": count,
            "spoken": len(spoken),
            "voiced": count - len(spoken),
            "formats": sets.split_counts(kept, "format"),
            "kinds": sets.split_counts(kept, "kind"),
        }

    section = settings.model_dump(mode="json", include={"chain_shares", "written_dialogues", "answers_from"})
    return run.step(CHAIN_SET, make, settings=section, inputs={"units": units, "text_to_unit": voicing}, force=force)


def _spoken_answers(run: Run, units: Step, identity: str, answers: list[str]) -> dict[str, np.ndarray]:
    """Answer → units of its recording in the target voice, which the authors recommend over a text-to-unit model."""
    where = {"voice": run.recipe.corpus.target_voice, "kind": "answer"}
    spoken = {row.text: row.units for row in read_units(units.path, identity, where)}
    missing = [answer for answer in answers if answer not in spoken]
    if missing:
        raise UserError(
            f"{len(missing)} answers were never spoken by {where['voice']}, such as {missing[0]!r}: "
            "set instructions.answers_from to text_to_unit"
        )
    return spoken


# --- 05 text LLM and vocabulary -----------------------------------------------------------------------------------------------------
def make_text_model(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    settings = run.recipe.language_model

    def make(work: Path) -> dict:
        words = [part.value for row in _example_rows() for part in row.prompt + row.answer if part.kind == "template"]
        texts = [*lab_texts(run.recipe.seed), *words]
        vocabulary = Vocabulary(train_text_tokenizer(texts, settings.vocabulary))
        model = build_model(settings, vocabulary.size, run.recipe.seed)
        plan = stages.text_plan(vocabulary, settings.optimization.steps, run.recipe.seed)
        summary = stages.fit(model, plan, settings.tokens_per_batch, settings.optimization, work, **training_options(run, on_log))
        save_model(model, vocabulary, work)
        accuracy = stages.text_accuracy(model, vocabulary)
        parameters = sum(p.numel() for p in model.parameters())
        return summary | {"held_out_text_accuracy": accuracy, "parameters": parameters, "vocabulary": vocabulary.size}

    return run.step(TEXT_MODEL, make, settings=settings, force=force)


def make_expanded_model(run: Run, force: bool = False) -> Step:
    """Add units and markers to the vocabulary, once and before any stage."""
    text_model, inventory = run.require(TEXT_MODEL), run.require(INVENTORY)

    def make(work: Path) -> dict:
        model, before = load_model(text_model.path)
        after = before.expand(run.recipe.units.clusters, inventory.metrics["id"])
        probe = torch.tensor([[1, *before.encode_text("the big dog is in the house")]])
        with torch.inference_mode():
            old_logits = model(probe).logits
            expand_model(model, before, after, run.recipe.seed)
            change = (model(probe).logits[..., : before.size] - old_logits).abs().max().item()
        save_model(model, after, work)
        return {"before": before.size, "after": after.size, "largest_change_of_old_logits": change}

    return run.step(EXPANDED, make, settings={}, inputs={"text_model": text_model, "inventory": inventory}, force=force)


# --- 06, 07, 08 the three stages ----------------------------------------------------------------------------------------------------
def make_stage1(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    start, units, settings = run.require(EXPANDED), run.require(UNITS), run.recipe.stage1

    def make(work: Path) -> dict:
        model, vocabulary = load_model(start.path)
        speech = [row.units for row in read_units(units.path, vocabulary.inventory, {"split": ["train", "unlabelled"]})]
        held_out = [row.units for row in held_out_units(run, vocabulary.inventory)][:200]
        before = stages.unit_perplexity(model, vocabulary, held_out)
        plan = stages.stage1_plan(vocabulary, speech, settings.replay, run.recipe.seed)
        summary = stages.fit(model, plan, settings.tokens_per_batch, settings.optimization, work, **training_options(run, on_log))
        save_model(model, vocabulary, work)
        after = stages.unit_perplexity(model, vocabulary, held_out)
        return summary | {"unit_perplexity_before": before, "unit_perplexity": after}

    return run.step(STAGE1, make, settings=settings, inputs={"model": start, "units": units}, force=force)


def make_stage2(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    start, units, instructions = run.require(STAGE1), run.require(UNITS), run.require(CROSS_MODAL_SET)
    settings, templates = run.recipe.stage2, run.recipe.instructions

    def make(work: Path) -> dict:
        model, vocabulary = load_model(start.path)
        by_task: dict[str, list] = {"asr": [], "tts": []}
        for record in sets.read_set(instructions.path / "cross_modal.parquet", vocabulary.inventory):
            by_task[record["task"]].append(sets.record_to_row(record, templates.templates))
        speech = [row.units for row in read_units(units.path, vocabulary.inventory, {"split": ["train", "unlabelled"]})]
        plan = stages.stage2_plan(vocabulary, by_task["asr"], by_task["tts"], speech, settings, templates, run.recipe.seed)
        held_out = held_out_units(run, vocabulary.inventory)[:64]
        before = _transcription_wer(model, vocabulary, held_out)
        summary = stages.fit(model, plan, settings.tokens_per_batch, settings.optimization, work, **training_options(run, on_log))
        save_model(model, vocabulary, work)
        return summary | {"asr_wer_before": before, "asr_wer": _transcription_wer(model, vocabulary, held_out)}

    inputs = {"model": start, "units": units, "instructions": instructions}
    section = {"stage": settings.model_dump(mode="json"), **_row_settings(templates)}
    return run.step(STAGE2, make, settings=section, inputs=inputs, force=force)


def make_stage3(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    start, instructions = run.require(STAGE2), run.require(CHAIN_SET)
    settings, templates = run.recipe.stage3, run.recipe.instructions

    def make(work: Path) -> dict:
        model, vocabulary = load_model(start.path)
        rows = [
            sets.record_to_row(r, templates.templates) for r in sets.read_set(instructions.path / "chain.parquet", vocabulary.inventory)
        ]
        questions = [row for row in held_out_units(run, vocabulary.inventory) if row.kind in world.KINDS][:64]
        before = _chain_accuracy(model, vocabulary, questions)
        adapted = stages.add_lora(model, settings.lora, run.recipe.seed)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        plan = stages.stage3_plan(vocabulary, rows, templates)
        summary = stages.fit(model, plan, settings.tokens_per_batch, settings.optimization, work, **training_options(run, on_log))
        adapted.save_pretrained(str(work))
        after = _chain_accuracy(model, vocabulary, questions)
        return summary | {"trainable_parameters": trainable, "chain_accuracy_before": before, "chain_accuracy": after}

    section = {"stage": settings.model_dump(mode="json"), **_row_settings(templates)}
    return run.step(STAGE3, make, settings=section, inputs={"model": start, "instructions": instructions}, force=force)


def _row_settings(instructions) -> dict:
    """What of the instruction settings changes how rows become tokens."""
    return instructions.model_dump(mode="json", include={"templates", "loss", "text_weight"})


# --- what the steps share -----------------------------------------------------------------------------------------------------------
def _transcription_wer(model, vocabulary: Vocabulary, rows: list[UnitRow]) -> float:
    return wer([row.text for row in rows], generation.transcribe(model, vocabulary, [row.units for row in rows]))


def _chain_accuracy(model, vocabulary: Vocabulary, rows: list[UnitRow]) -> float:
    chains = generation.answer(model, vocabulary, [row.units for row in rows], reply="text")
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
