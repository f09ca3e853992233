"""The steps of notebooks 05 to 08: the text model, its expanded vocabulary, and the three
stages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accelerate import PartialState

from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.descriptions import load_descriptions
from speechgpt_lib.instructions.templates import CHAIN_FORMATS, Row, chain_row, cross_modal_row
from speechgpt_lib.language_model import generation, stages
from speechgpt_lib.language_model.adapters import add_lora, save_adapter
from speechgpt_lib.language_model.model import (
    CausalLoss,
    build_model,
    expand_saved,
    load_model,
    load_sharded,
    save_model,
)
from speechgpt_lib.language_model.rows import encoded, write_table
from speechgpt_lib.language_model.vocabulary import Vocabulary, train_text_tokenizer
from speechgpt_lib.metrics.unit_errors import wer
from speechgpt_lib.pipeline.imports import import_stage2, import_stage3, import_text_model
from speechgpt_lib.pipeline.step import Definition, Job, part, trained
from speechgpt_lib.recipes.schema import Recipe, StageSettings
from speechgpt_lib.runs.seeds import shuffled
from speechgpt_lib.training.devices import resolve_precision
from speechgpt_lib.units.extract import UnitRow, read_units

HEARD = ["train", "unlabelled"]  # the splits whose units stages 1 and 2 learn


# --- 05 text LLM and vocabulary -------------------------------------------------------------------
def make_text_model(job: Job) -> dict:
    """The stand-in for LLaMA, trained on the text of the corpora."""
    settings, corpora, seed = job.recipe.language_model, job.corpora(), job.recipe.seed
    parts = [part for row in _example_rows() for part in row.prompt + row.answer]
    words = [part.value for part in parts if part.kind == "template"]
    texts = [*corpora.texts(seed), *words]
    vocabulary = Vocabulary(train_text_tokenizer(texts, settings.vocabulary))
    model = build_model(settings, vocabulary.size, seed)
    plan = stages.text_plan(vocabulary, corpora, settings.optimization.steps, seed)
    batches = {"tokens_per_batch": settings.tokens_per_batch}
    stage = StageSettings(optimization=settings.optimization, **batches)
    summary = stages.fit(model, plan, stage, job.work, job.training)
    save_model(model, vocabulary, job.work)
    questions = corpora.held_out_questions(job.recipe.evaluation.text_questions)
    accuracy = stages.text_accuracy(model, vocabulary, questions, job.recipe.generation.text)
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"held_out_text_accuracy": accuracy, "parameters": parameters}
    return summary | facts | {"vocabulary": vocabulary.size}


def _example_rows() -> list[Row]:
    """Rows of every template, so that the tokenizer has seen their words."""
    units = np.array([0])
    rows = [chain_row(f, "a", "b", units, units) for f in CHAIN_FORMATS] * 20
    for task in ("asr", "tts"):
        rows += [cross_modal_row(task, d, "a", units) for d in load_descriptions(task)]
    return rows


def make_expanded_model(job: Job) -> dict:
    """Add units and markers to the vocabulary, once and before any stage."""
    settings, inventory = job.recipe.language_model, job.inventory()
    by_sound = settings.new_embeddings == "centroids"
    options = {"centroids": inventory.kmeans.centroids if by_sound else None}
    options |= {"multiple": settings.multiple}
    units = inventory.id, inventory.count, job.recipe.seed
    before, after = expand_saved(job.path("text_model"), job.work, *units, **options)
    return {"before": before.size, "after": after.size}


# --- 06, 07, 08 the three stages ------------------------------------------------------------------
def make_stage1(job: Job) -> dict:
    """Modality adaptation: the next unit of unlabelled speech."""
    settings, count = job.recipe.stage1, job.recipe.evaluation.stage1_utterances
    scorer, vocabulary = _start(job, "expanded_model", settings)
    speech = read_units(job.path("units"), vocabulary.inventory, {"split": HEARD})
    rows = (stages.unit_row(vocabulary, row.units, row.id) for row in speech)
    held_out = [row.units for row in held_out_units(job)][:count]
    with stages.evaluating(scorer) as model:
        before = stages.unit_perplexity(model, vocabulary, held_out)
    with _tokens(job.work) as tokens:
        own = write_table(tokens / "units", rows, vocabulary.size)
        replay = stages.Replay(vocabulary, job.corpora(), settings.replay)
        plan = stages.stage1_plan(own, replay, job.recipe.seed)
        summary = stages.fit(scorer, plan, settings, job.work, job.training, vocabulary.ends)
    save_model(scorer.model, vocabulary, job.work)
    with stages.evaluating(scorer) as model:
        after = stages.unit_perplexity(model, vocabulary, held_out)
    return summary | {"unit_perplexity_before": before, "unit_perplexity": after}


def make_stage2(job: Job) -> dict:
    """Cross-modal fine-tuning: listen and write, read and speak."""
    settings, templates = job.recipe.stage2, job.recipe.instructions
    scorer, vocabulary = _start(job, "stage1", settings)
    speech = []
    if settings.replay.get("units"):
        rows = read_units(job.path("units"), vocabulary.inventory, {"split": HEARD})
        speech = [row.units for row in rows]
    held_out = held_out_units(job)[: job.recipe.evaluation.stage_utterances]
    with stages.evaluating(scorer) as model:
        before = _transcription_wer(job, model, vocabulary, held_out)
    with _tokens(job.work) as tokens:
        tasks = []
        for task in ("asr", "tts"):
            records = sets.read_set(job.path("cross_modal_set"), vocabulary.inventory)
            own = (record for record in records if record.task == task)
            tasks.append(encoded(own, vocabulary, templates, tokens / task))
        past = (vocabulary, job.corpora(), settings.replay, speech, templates.text_weight)
        replay = stages.Replay(*past)
        plan = stages.stage2_plan(tasks, replay, settings.speaking, job.recipe.seed)
        summary = stages.fit(scorer, plan, settings, job.work, job.training, vocabulary.ends)
    save_model(scorer.model, vocabulary, job.work)
    with stages.evaluating(scorer) as model:
        after = _transcription_wer(job, model, vocabulary, held_out)
    return summary | {"asr_wer_before": before, "asr_wer": after}


def make_stage3(job: Job) -> dict:
    """Chain of modality: hear, write, answer, speak; adapters alone learn it (LoRA)."""
    settings, templates = job.recipe.stage3, job.recipe.instructions
    model, vocabulary = load_model(job.path("stage2"))
    model.to(job.training.device)
    questions = [row for row in held_out_units(job) if row.answer]
    questions = questions[: job.recipe.evaluation.stage_utterances]
    before = _chain_accuracy(job, model, vocabulary, questions)
    new_tokens = range(vocabulary.text_size, vocabulary.size) if settings.lora.new_tokens else ()
    adapted = add_lora(model, settings.lora, job.recipe.seed, new_tokens)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    with _tokens(job.work) as tokens:
        records = sets.read_set(job.path("chain_set"), vocabulary.inventory)
        own = list(encoded(records, vocabulary, templates, tokens / "chains"))
        rows_of = stages.always(own)
        summary = stages.fit(model, rows_of, settings, job.work, job.training, vocabulary.ends)
    save_adapter(adapted, job.work)
    facts = {"trainable_parameters": trainable, "chain_accuracy_before": before}
    return summary | facts | {"chain_accuracy": _chain_accuracy(job, model, vocabulary, questions)}


def held_out_units(job: Job) -> list[UnitRow]:
    """Held-out utterances in the voices of training, in a seeded order."""
    rows = read_units(job.path("units"), None, {"split": "test"})
    return shuffled(list(rows), job.recipe.seed)


def _start(job: Job, name: str, stage: StageSettings) -> tuple[CausalLoss, Vocabulary]:
    """The model that a stage begins with, in its loss, on the device where it trains; shared out
    over the processes where the stage says so."""
    device = job.training.device
    if stages.is_sharded(stage, job.training):
        place = PartialState(cpu=device == "cpu").device  # the processes meet here
        precision = resolve_precision(stage.optimization.precision, device)
        return load_sharded(job.path(name), place, precision)
    model, vocabulary = load_model(job.path(name))
    return CausalLoss(model.to(device)), vocabulary


@contextlib.contextmanager
def _tokens(work: Path) -> Iterator[Path]:
    """A folder for encoded rows, which every attempt makes anew and which are no result."""
    folder = work / "tokens"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _transcription_wer(job: Job, model, vocabulary: Vocabulary, rows: list[UnitRow]) -> float:
    units, limit = [row.units for row in rows], job.recipe.generation.transcript
    templates = job.recipe.instructions.templates
    heard = generation.transcribe(model, vocabulary, units, limit, templates)
    return wer([row.text for row in rows], [written.text for written in heard])


def _chain_accuracy(job: Job, model, vocabulary: Vocabulary, rows: list[UnitRow]) -> float | None:
    """The share of spoken questions that are answered word for word; None where there are none."""
    if not rows:
        return None
    templates, limits = job.recipe.instructions.templates, job.recipe.generation
    # The release knows one format.
    reply = "speech" if templates == "release" else "text"
    limit = limits.spoken_answer if reply == "speech" else limits.written_answer
    units = [row.units for row in rows]
    chains = generation.answer(model, vocabulary, units, limit, reply, templates)
    return float(np.mean([c.ta == row.answer for c, row in zip(chains, rows, strict=True)]))


def _text_needs(recipe: Recipe) -> tuple[str, ...]:
    """Recorded corpora know their text from their table; the lab's needs no speech."""
    return ("corpus",) if any(corpus.reader != "lab" for corpus in recipe.corpora) else ()


def _with_text(*names: str):
    return lambda recipe: names + _text_needs(recipe)


def _stage_settings(name: str, *instructions: str):
    """A stage's settings, with what of the instruction settings changes how rows become tokens."""

    def settings(recipe: Recipe) -> dict:
        stage = getattr(recipe, name).model_dump(mode="json")
        rows = recipe.instructions.model_dump(mode="json", include=set(instructions))
        return {"stage": stage, **rows}

    return settings


ROWS = ("templates", "loss", "text_weight")
STEPS = (
    Definition(
        "text_model",
        _text_needs,
        part("language_model"),
        make_text_model,
        cost=trained(3.5),
        bring=import_text_model,
    ),
    Definition(
        "expanded_model",
        ("text_model", "inventory"),
        part("language_model", "new_embeddings", "multiple"),
        make_expanded_model,
    ),
    Definition(
        "stage1",
        _with_text("expanded_model", "units"),
        _stage_settings("stage1"),
        make_stage1,
        cost=trained(0.8, threads="all"),  # stage 2 waits for it
    ),
    Definition(
        "stage2",
        _with_text("stage1", "units", "cross_modal_set"),
        _stage_settings("stage2", *ROWS),
        make_stage2,
        cost=trained(7.5),
        bring=import_stage2,
        bring_needs=("inventory",),
    ),
    Definition(
        "stage3",
        ("stage2", "units", "chain_set"),
        _stage_settings("stage3", *ROWS),
        make_stage3,
        cost=trained(3.5),
        bring=import_stage3,
        bring_needs=("stage2",),
    ),
)
