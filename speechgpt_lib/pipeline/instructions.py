"""The steps of notebooks 03 and 04: the cross-modal set, the text-to-unit model and its worth, and
the chain-of-modality set."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.judges import open_judge_settings
from speechgpt_lib.instructions.card import source_facts
from speechgpt_lib.instructions.chain import Dialogue, Voicing, build_chain
from speechgpt_lib.instructions.cross_modal import Pairing, build_cross_modal
from speechgpt_lib.instructions.descriptions import read_descriptions
from speechgpt_lib.instructions.moss import Report, read_moss, select
from speechgpt_lib.instructions.sets import SetFacts
from speechgpt_lib.metrics.unit_errors import unit_error_rate, wer
from speechgpt_lib.pipeline.imports import (
    data_path,
    import_chain_set,
    import_cross_modal_set,
    import_text_to_unit,
)
from speechgpt_lib.pipeline.step import Cost, Definition, Job, part, trained
from speechgpt_lib.pipeline.vocoder import judging, speaking_voices
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.text_to_unit.model import POSITIONS
from speechgpt_lib.text_to_unit.speech import speech_voicing
from speechgpt_lib.text_to_unit.spoken_form import spoken_form, unsaid
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.text_to_unit.training import train_text_to_unit
from speechgpt_lib.units.extract import UnitRow, read_units
from speechgpt_lib.vocoder.synthesis import Vocoder

OWN_SPLIT = "the corpora's own: held-out questions are left out"
SHARD = 1000  # dialogues in a shard, where there is no end of them


def make_cross_modal_set(job: Job) -> dict:
    """Each pair of speech and text with a description that asks for one or the other."""
    settings, inventory = job.recipe.instructions, job.inventory()
    lists = None
    if settings.descriptions:
        folder = data_path(job.recipe, settings.descriptions)
        lists = {task: read_descriptions(folder / f"{task}.txt") for task in ("asr", "tts")}
    pairing = Pairing(
        seed=job.recipe.seed,
        pairing=settings.pairing,
        speaking_voices=tuple(speaking_voices(job)) if settings.speaking == "target" else None,
        splits=("train",),
        held_out_splits=("test",),
        templates=settings.templates,
        descriptions=lists,
    )
    summary = build_cross_modal(
        [job.path("units")],
        job.work,
        pairing,
        inventory_id=inventory.id,
        unit_count=inventory.count,
        shards=job.shards,
        source_facts=corpus_facts(job.recipe) + ([] if lists else [source_facts("descriptions")]),
    )
    return set_metrics(summary) | {"tasks": summary["statistics"]["counts"]}


def corpus_facts(recipe: Recipe) -> list[dict]:
    """Title and licence of every corpus, for the data card of a set."""
    return [source_facts(name) for name in dict.fromkeys(c.reader for c in recipe.corpora)]


def set_metrics(summary: dict) -> dict:
    """What a step keeps of a set's summary."""
    kept = ("held_out", "quarantined", "table_hash")
    return {"rows": summary["statistics"]["rows"]} | {name: summary[name] for name in kept}


def make_text_to_unit(job: Job) -> dict:
    """Train the generator of speech on transcripts and units of the voices that answer.

    Writing becomes what is spoken first ("2" becomes "two"); the lab's sentences are that already.
    """
    inventory, settings = job.inventory(), job.recipe.text_to_unit
    written = any(corpus.reader != "lab" for corpus in job.recipe.corpora)
    where = {"voice": speaking_voices(job), "split": ["train", "voice"]}
    rows = [row for row in read_units(job.path("units"), inventory.id, where) if row.text]
    sayable = [row for row in rows if not (written and unsaid(row.text))]
    pairs = [(spoken_form(row.text) if written else row.text, row.units) for row in sayable]
    kept = [(text, units) for text, units in pairs if _fits(text, units)]
    model, summary = train_text_to_unit(
        kept, inventory.count, settings, job.work, job.training, inventory_id=inventory.id
    )
    model = replace(model, spoken_form=written)
    model.save(job.work)
    facts = summary | ({"left_out": len(rows) - len(kept)} if len(kept) < len(rows) else {})
    facts |= {"unsayable": len(rows) - len(sayable)} if len(sayable) < len(rows) else {}
    test = [row for row in held_out_sentences(job) if model.refuses(row.text) is None]
    if test:
        made = model.generate([row.text for row in test])
        facts["held_out_unit_error_rate"] = unit_error_rate([row.units for row in test], made)
    return facts


def _fits(text: str, units: np.ndarray) -> bool:
    """Whether the model can read a pair: neither empty nor too long."""
    return 0 < len(text) < POSITIONS and 0 < len(units) < POSITIONS


def make_voicing_evaluation(job: Job) -> dict:
    """Both ways from text to units on held-out sentences: how far they are from the recorded
    units, and what the judges hear after the vocoder."""
    vocoder = Vocoder.load(job.path("vocoder"))
    engines = {way: voicing(job, way) for way in ("text_to_unit", "tts")}
    judges, spelt = judging(job)
    test = held_out_sentences(job)
    test = [row for row in test if not any(e.refuses(row.text) for e in engines.values())]
    texts, recorded = [row.text for row in test], [row.units for row in test]
    ways = {way: engine.generate(texts) for way, engine in engines.items()}
    found: dict = {"sentences": len(texts)}
    if not texts:
        return found
    for way, made in (ways | {"recordings": recorded}).items():
        found[way] = {"unit_error_rate": unit_error_rate(recorded, made)}
        waves = vocoder.synthesize_many(made) if judges else []
        for suffix, judge in judges.items():
            heard = map(spelt, judge.transcribe_many(waves))
            found[way][f"wer{suffix}"] = wer([*map(spelt, texts)], [*heard])
    return found


def make_chain_set(job: Job) -> dict:
    """Quadruplets of the corpora's questions, spoken or written; what is written is voiced."""
    settings, inventory = job.recipe.instructions, job.inventory()
    rows = read_units(job.path("units"), inventory.id, {"split": "train"})
    asked = (row for row in rows if row.answer)
    spoken = [Dialogue(r.id, r.text, r.answer, r.kind, r.units, "corpus") for r in asked]
    own, report = [*spoken, *_written(job)], Report()
    stream = chain(own, _moss(job, report)) if settings.dialogues else own
    summary = build_chain(
        stream,
        job.work,
        voicing(job, settings.questions_from),
        voicing(job, settings.answers_from),
        settings.chain_shares,
        job.recipe.seed,
        SetFacts("chain", inventory.id, inventory.count, settings.templates),
        held_out_share=settings.held_out_share if settings.dialogues else 0.0,
        # One shard, if one can: an answer that many questions have sounds the same in all of them.
        shard_size=SHARD if settings.dialogues else max(1, len(own)),
        split_rule=None if settings.dialogues else OWN_SPLIT,
        sources=corpus_facts(job.recipe) + ([source_facts("moss")] if settings.dialogues else []),
        selection=report.funnel if settings.dialogues else None,
        shards=job.shards,
        on_rows=None if job.on_log is None else lambda count: job.on_log({"rows": count}),
    )
    whole = job.shards == slice(None)
    if settings.dialogues and whole and not summary["statistics"]["rows"]:
        lost = report.dropped + Counter(summary["quarantined"])
        why = ", ".join(f"{reason} {n}" for reason, n in lost.most_common(4)) or "nothing in it"
        what = f"{settings.dialogues}: none of {report.records} records became a row ({why})"
        raise UserError(f"{what}; expected dialogues of MOSS, see docs/speech-instruct.md")
    counts = {"spoken": len(spoken), "voiced": summary["statistics"]["rows"] - len(spoken)}
    kinds = {"formats": summary["statistics"]["counts"], "kinds": Counter(d.kind for d in own)}
    return set_metrics(summary) | counts | kinds


def held_out_sentences(job: Job) -> list[UnitRow]:
    """Held-out recordings of the voices that answer; of all voices, where those have none."""
    rows = [row for row in read_units(job.path("units"), None, {"split": "test"}) if row.text]
    voices = set(speaking_voices(job))
    own = [row for row in rows if row.voice in voices]
    return (own or rows)[: job.recipe.evaluation.voicing_sentences]


def voicing(job: Job, way: str) -> Voicing:
    """From text to units by the model "text_to_unit", or by "tts", a synthesiser and extractor."""
    if way == "text_to_unit":
        return TextToUnit.load(job.path("text_to_unit"))
    settings = job.recipe.instructions
    job.run.check_program()
    return speech_voicing(settings.synthesiser, job.inventory(), synthesiser_voice(job.recipe))


def synthesiser_voice(recipe: Recipe) -> str:
    """eSpeak's voice: the recipe's, or the one that answers in the lab."""
    lab = recipe.lab.target_voice if recipe.lab else "Female1"
    return recipe.instructions.synthesiser_voice or lab


def _written(job: Job) -> Iterator[Dialogue]:
    rng = random.Random(f"written dialogues {job.recipe.seed}")
    questions = job.corpora().questions(rng, job.recipe.instructions.written_dialogues)
    for k, question in enumerate(questions):
        yield Dialogue(f"t{k:06d}", question.text, question.answer, question.kind, None, "written")


def _moss(job: Job, report: Report) -> Iterator[Dialogue]:
    settings = job.recipe.instructions
    samples = read_moss(data_path(job.recipe, settings.dialogues), report)
    limits = {"maximum_words": settings.maximum_response_words, "classroom": settings.classroom}
    yield from select(samples, **limits, report=report)


def _chain_needs(recipe: Recipe) -> tuple[str, ...]:
    ways = {recipe.instructions.questions_from, recipe.instructions.answers_from}
    return ("units", "inventory", *(["text_to_unit"] if "text_to_unit" in ways else []))


def _set_settings(*names: str) -> Callable[[Recipe], dict]:
    """The settings of a set that make its key; paths count with the size of what lies there."""

    def settings(recipe: Recipe) -> dict:
        found = recipe.instructions.model_dump(mode="json", include=set(names))
        return found | {"files": _sizes(recipe, found.get("dialogues"), found.get("descriptions"))}

    return settings


def _sizes(recipe: Recipe, *paths: str | None) -> dict[str, int]:
    found = [data_path(recipe, path) for path in paths if path]
    files = (file for path in found for file in [path, *sorted(path.rglob("*"))])
    return {file.name: file.stat().st_size for file in files if file.is_file()}


# What of the instruction settings makes the chain set.
CHAIN = (
    "chain_shares written_dialogues answers_from questions_from synthesiser synthesiser_voice "
    "templates dialogues classroom maximum_response_words held_out_share"
).split()
STEPS = (
    Definition(
        "cross_modal_set",
        ("corpus", "units", "inventory"),
        _set_settings("pairing", "templates", "speaking", "descriptions"),
        make_cross_modal_set,
        version=3,
        cost=Cost(splittable=True),
        bring=import_cross_modal_set,
        bring_needs=("inventory",),
    ),
    Definition(
        "text_to_unit",
        ("corpus", "units", "inventory"),
        part("text_to_unit"),
        make_text_to_unit,
        version=3,
        cost=trained(1.3),
        bring=import_text_to_unit,
        bring_needs=("inventory",),
    ),
    Definition(
        "voicing",
        ("corpus", "units", "inventory", "text_to_unit", "vocoder"),
        lambda recipe: (
            _set_settings("synthesiser", "synthesiser_voice")(recipe)
            | {"sentences": recipe.evaluation.voicing_sentences}
            | open_judge_settings(recipe)
        ),
        make_voicing_evaluation,
        version=2,
    ),
    Definition(
        "chain_set",
        _chain_needs,
        _set_settings(*CHAIN),
        make_chain_set,
        version=3,
        cost=Cost(splittable=True),
        splits=lambda recipe: recipe.instructions.dialogues is not None,  # else it is one shard
        bring=import_chain_set,
        bring_needs=("inventory",),
    ),
)
