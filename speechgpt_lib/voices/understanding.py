"""The stage-2 model learns to understand the units that a voice gives, beside those it knows.

All its weights learn, for few steps: rows of the person's recordings, each in several versions,
and as many of the run's own cross-modal set, listening and speaking, so that the voices it knows,
and its own, stay as they were.  The adapter of stage 3 stays on the adapted weights as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import transformers

from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.descriptions import load_descriptions
from speechgpt_lib.instructions.records import Record
from speechgpt_lib.instructions.templates import cross_modal_row
from speechgpt_lib.language_model import stages
from speechgpt_lib.language_model.rows import RowsOf, TokenRow, row_to_tokens
from speechgpt_lib.language_model.vocabulary import UnitVocabulary
from speechgpt_lib.recipes.schema import Recipe, StageSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.voices.changes import changed
from speechgpt_lib.voices.store import Recording

READ = 20_000  # rows of the cross-modal set from which replayed ones are drawn
SPEAKING = 0.25  # share of the replayed rows that ask for speech
DOCUMENTS = 0.25  # documents, beside all those rows


def adapt_stage2(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    inventory: UnitInventory,
    recordings: Sequence[Recording],
    cross_modal_set: Path | None,
    corpora: Corpora,
    recipe: Recipe,
    work: Path,
    options: TrainingOptions,
) -> dict:
    """Train `model` in place and return the summary; `inventory` has the encoder that hears the
    voice.  Without a cross-modal set only documents stand beside the recordings."""
    settings = recipe.voice
    rng = np.random.default_rng(options.seed)
    heard = {}
    for k, recording in enumerate(recordings):
        waves = [
            recording.wave,
            *(changed(recording.wave, rng)[0] for _ in range(settings.versions)),
        ]
        heard[k] = [inventory.encode(wave)[0] for wave in waves]
    new = [(recording.text, heard[k]) for k, recording in enumerate(recordings)]
    plan = _plan(new, vocabulary, cross_modal_set, corpora, recipe, options.seed)
    batches = {"tokens_per_batch": settings.tokens_per_batch, "too_long": "drop"}
    stage = StageSettings(optimization=settings.stage2, **batches)
    work.mkdir(parents=True, exist_ok=True)
    model.to(options.device)
    return stages.fit(model, plan, stage, work, options, vocabulary.ends)


def _plan(
    new: list[tuple[str, list[np.ndarray]]],
    vocabulary: UnitVocabulary,
    cross_modal_set: Path | None,
    corpora: Corpora,
    recipe: Recipe,
    seed: int,
) -> RowsOf:
    """Rows of an epoch: each recording once, in one of its versions, and what the run knows."""
    how, asked = recipe.instructions, load_descriptions("asr")
    known: dict[str, list[Record]] = {"asr": [], "tts": []}
    ours = sets.read_set(cross_modal_set, vocabulary.inventory) if cross_modal_set else ()
    for record in islice(ours, READ):
        known[record.task].append(record)
    beside = max(1, round(len(new) * (1 / recipe.voice.voice_share - 1)))
    counts = {"tts": round(SPEAKING * beside), "asr": beside - round(SPEAKING * beside)}

    def tokens(row) -> TokenRow:
        return row_to_tokens(row, vocabulary, how.loss, how.text_weight)

    def rows_of(epoch: int, step: int) -> list[TokenRow]:
        rng, rows = Random(f"voice {seed} {epoch}"), []
        for text, versions in new:
            units = rng.choice(versions)
            row = cross_modal_row("asr", rng.choice(asked), text, units, how.templates)
            rows.append(tokens(row))
        for task, count in counts.items():
            drawn = rng.sample(known[task], min(count, len(known[task])))
            rows += [tokens(sets.record_to_row(record, how.templates)) for record in drawn]
        replay = stages.Replay(vocabulary, corpora, {"text": DOCUMENTS}, (), how.text_weight)
        return rows + replay.rows(rng, len(rows))

    return rows_of
