"""The steps of notebooks 03 and 04: the cross-modal set, the text-to-unit model and what it is worth, and the chain-of-modality set."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from speechgpt_lib.corpora import world
from speechgpt_lib.evaluation.vocoder import judges_if_installed
from speechgpt_lib.instructions.card import source_facts
from speechgpt_lib.instructions.chain import Dialogue, Voicing, build_chain
from speechgpt_lib.instructions.cross_modal import Pairing, build_cross_modal
from speechgpt_lib.instructions.sets import SetFacts
from speechgpt_lib.metrics.unit_errors import unit_error_rate
from speechgpt_lib.metrics.wer import wer
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.steps import (
    CHAIN_SET,
    CROSS_MODAL_SET,
    INVENTORY,
    TEXT_TO_UNIT,
    UNITS,
    VOCODER,
    VOICING_EVALUATION,
    OnLog,
    inventory_of,
    training_options,
)
from speechgpt_lib.text_to_unit.speech import speech_voicing
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.text_to_unit.training import train_text_to_unit
from speechgpt_lib.units.extract import UnitRow, read_units
from speechgpt_lib.vocoder.synthesis import Vocoder

HELD_OUT = 48  # sentences by which ways of voicing are compared


def make_cross_modal_set(run: Run, force: bool = False) -> Step:
    units, inventory, settings = run.require(UNITS), run.require(INVENTORY), run.recipe.instructions
    voice = run.recipe.corpus.target_voice
    pairing = Pairing(
        seed=run.recipe.seed,
        pairing=settings.pairing,
        speaking_voice=voice,
        splits=("train",),
        held_out_splits=("test",),
        templates=settings.templates,
    )

    def make(work: Path) -> dict:
        identity, count = inventory.metrics["id"], run.recipe.units.clusters
        sources = [source_facts("lab"), source_facts("descriptions")]
        summary = build_cross_modal(
            [units.path],
            work,
            pairing,
            inventory_id=identity,
            unit_count=count,
            source_facts=sources,
        )
        return _set_metrics(summary) | {"tasks": summary["statistics"]["counts"]}

    section = {"voice": voice, "pairing": settings.pairing, "templates": settings.templates}
    return run.step(
        CROSS_MODAL_SET, make, settings=section, inputs={"units": units}, version=2, force=force
    )


def make_text_to_unit(run: Run, force: bool = False, on_log: OnLog = None) -> Step:
    units, inventory, settings = run.require(UNITS), run.require(INVENTORY), run.recipe.text_to_unit
    voice = run.recipe.corpus.target_voice

    def make(work: Path) -> dict:
        pairs = [
            (r.text, r.units)
            for r in read_units(
                units.path, inventory.metrics["id"], {"voice": voice, "split": "train"}
            )
        ]
        count = run.recipe.units.clusters
        model, summary = train_text_to_unit(
            pairs,
            count,
            settings,
            work,
            training_options(run, on_log),
            inventory_id=inventory.metrics["id"],
        )
        model.save(work)
        test = held_out_sentences(run)
        made = model.generate([row.text for row in test])
        return summary | {
            "held_out_unit_error_rate": unit_error_rate([row.units for row in test], made)
        }

    return run.step(
        TEXT_TO_UNIT, make, settings=settings, inputs={"units": units}, version=2, force=force
    )


def make_voicing_evaluation(run: Run, force: bool = False) -> Step:
    """Both ways from text to units on held-out sentences: how far from the recorded units, and what the judge hears after the vocoder."""
    units, model, vocoder = run.require(UNITS), run.require(TEXT_TO_UNIT), run.require(VOCODER)

    def make(work: Path) -> dict:
        test, speaker, judges = (
            held_out_sentences(run),
            Vocoder.load(vocoder.path),
            judges_if_installed(run.say),
        )
        texts, recorded = [row.text for row in test], [row.units for row in test]
        ways = {way: _voicing(run, way).generate(texts) for way in ("text_to_unit", "tts")} | {
            "recordings": recorded
        }
        found: dict = {"sentences": len(texts)}
        for way, made in ways.items():
            found[way] = {"unit_error_rate": unit_error_rate(recorded, made)}
            if judges:
                found[way]["wer"] = wer(
                    texts, judges[0].transcribe_many(speaker.synthesize_many(made))
                )
        return found

    section = {
        "synthesiser": run.recipe.instructions.synthesiser,
        "voice": run.recipe.corpus.target_voice,
    }
    inputs = {"units": units, "text_to_unit": model, "vocoder": vocoder}
    return run.step(VOICING_EVALUATION, make, settings=section, inputs=inputs, force=force)


def make_chain_set(run: Run, force: bool = False) -> Step:
    """Quadruplets of the corpus' spoken questions and of written ones, which are voiced; so is every answer."""
    units, inventory, model = run.require(UNITS), run.require(INVENTORY), run.require(TEXT_TO_UNIT)
    settings, identity = run.recipe.instructions, inventory.metrics["id"]

    def make(work: Path) -> dict:
        spoken = [
            Dialogue(row.id, row.text, row.answer, row.kind, row.units, "corpus")
            for row in read_units(
                units.path, identity, {"split": "train", "kind": list(world.KINDS)}
            )
        ]
        dialogues = [*spoken, *_written(settings.written_dialogues, run.recipe.seed)]
        summary = build_chain(
            dialogues,
            work,
            _voicing(run, settings.questions_from),
            _voicing(run, settings.answers_from),
            settings.chain_shares,
            run.recipe.seed,
            SetFacts("chain", identity, run.recipe.units.clusters, settings.templates),
            shard_size=len(
                dialogues
            ),  # one shard: an answer that many questions have sounds the same in all
            split_rule="a hash of the question, before it was spoken (corpora/world.py)",
            sources=[source_facts("lab")],
        )
        kinds = dict.fromkeys(world.KINDS, 0)
        for dialogue in dialogues:
            kinds[dialogue.kind] += 1
        counts = {"spoken": len(spoken), "voiced": summary["statistics"]["rows"] - len(spoken)}
        return (
            _set_metrics(summary)
            | counts
            | {"formats": summary["statistics"]["counts"], "kinds": kinds}
        )

    keys = {
        "chain_shares",
        "written_dialogues",
        "answers_from",
        "questions_from",
        "synthesiser",
        "templates",
    }
    section = settings.model_dump(mode="json", include=keys)
    return run.step(
        CHAIN_SET,
        make,
        settings=section,
        inputs={"units": units, "text_to_unit": model},
        version=2,
        force=force,
    )


def held_out_sentences(run: Run) -> list[UnitRow]:
    """Held-out recordings of the target voice."""
    where = {"voice": run.recipe.corpus.target_voice, "split": "test"}
    return list(read_units(run.require(UNITS).path, None, where))[:HELD_OUT]


def _voicing(run: Run, way: str) -> Voicing:
    if way == "text_to_unit":
        return TextToUnit.load(run.require(TEXT_TO_UNIT).path)
    return speech_voicing(
        run.recipe.instructions.synthesiser, inventory_of(run), run.recipe.corpus.target_voice
    )


def _written(count: int, seed: int) -> Iterator[Dialogue]:
    rng = random.Random(f"written dialogues {seed}")
    questions = [world.sample_question(rng) for _ in range(count)]
    for k, question in enumerate(q for q in questions if not world.is_held_out(q.text)):
        yield Dialogue(f"t{k:06d}", question.text, question.answer, question.kind, None, "written")


def _set_metrics(summary: dict) -> dict:
    return {
        "rows": summary["statistics"]["rows"],
        "held_out": summary["held_out"],
        "quarantined": summary["quarantined"],
        "table_hash": summary["table_hash"],
    }
