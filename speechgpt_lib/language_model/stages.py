"""The trainings of the language model: text first (the stand-in for LLaMA), then three stages.

| stage | rows | trainable | held-out metric |
|---|---|---|---|
| text | documents of the corpora | all | questions answered rightly in text |
| 1 modality adaptation | units of unlabelled speech, next token | all | perplexity of units |
| 2 cross-modal fine-tuning | ASR and TTS instructions | all | word error rate of speech |
| 3 chain of modality | four formats of dialogue | LoRA | spoken questions answered rightly |

**Differs from the paper**: stages 1 and 2 replay rows of what came before (text, units) beside
their own; without it a model this small forgets its text and then learns the alignment slowly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import transformers

from speechgpt_lib.corpora.corpus import Corpora, Question
from speechgpt_lib.language_model.documents import document_rows, question_prompt
from speechgpt_lib.language_model.generation import generate
from speechgpt_lib.language_model.likelihood import log_likelihoods
from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.language_model.packing import PackedBatches, concatenate, fit_rows
from speechgpt_lib.language_model.planning import Shape
from speechgpt_lib.language_model.rows import EpochBatches, RowsOf, TokenRow, collate
from speechgpt_lib.language_model.vocabulary import PAD, UnitVocabulary
from speechgpt_lib.recipes.schema import StageSettings
from speechgpt_lib.training import sharding
from speechgpt_lib.training.attention import training_attention
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions

TEXT_EPOCH = 2000  # documents between two draws of new ones
CURRICULUM = 0.25  # share of the text steps in which look-ups and echoes come alone


def is_sharded(stage: StageSettings, options: TrainingOptions) -> bool:
    """Whether a stage shares its model out over several processes."""
    return stage.optimization.sharding == "full" and options.world_size > 1


@contextlib.contextmanager
def evaluating(scorer: CausalLoss) -> Iterator[transformers.PreTrainedModel]:
    """The model of `scorer`, ready to be asked.  Where it is sharded, by all processes at once and
    the same: its layers come together one by one, its tables and norms for as long as this."""
    if not sharding.is_sharded(scorer):
        yield scorer.model
        return
    with torch.no_grad():  # FSDP2 wants to be passed through from outside first
        scorer(*(t.to(scorer.model.device) for t in collate([TokenRow([1, 2], [0.0, 1.0])])))
    scorer.unshard()
    yield scorer.model
    scorer.reshard()


def fit(
    model: transformers.PreTrainedModel | CausalLoss,
    rows_of: RowsOf,
    stage: StageSettings,
    work: Path,
    options: TrainingOptions,
    ends: frozenset[int] = frozenset(),
) -> dict:
    """Train `model` (a sharded one comes with its loss) in place on `rows_of(epoch, first step of
    that epoch)`.

    A shortened row keeps its last id if it is one of `ends`.  Returns the loop's summary with
    tokens per second (no padding).
    """
    batches, counts = batches_of(rows_of, stage, options.seed, ends)
    scorer = model if isinstance(model, CausalLoss) else CausalLoss(model)
    model, sharded = scorer.model, is_sharded(stage, options)
    all_trained = float(all(p.requires_grad for p in model.parameters()))
    flops = Shape.of_config(model.config).flops_per_token(0, all_trained)

    def step_function(phase: str, modules: dict, batch: tuple, step: int):
        sums = modules["model"](*(tensor.to(options.device) for tensor in batch))
        return *sums, {"tokens": int((batch[0] != PAD).sum())}

    def name_rows(step: int, rank: int, processes: int) -> str:
        return _suspects(scorer, batches.rows_at(step, rank, processes), sharded)

    task = Task(
        {"model": scorer}, step_function, batches, flops_per_token=flops, name_rows=name_rows
    )
    model.train()  # dropout, and checkpointing, which does nothing else
    if stage.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with training_attention(model, options.device, stage.attention, stage.packing != "none"):
        summary = train(task, stage.optimization, work, options)
    if stage.checkpointing:
        model.gradient_checkpointing_disable()
    model.eval().to(options.device)  # where a sharded training has left it in main memory
    if "tokens" in summary:
        summary["tokens_per_second"] = round(summary["tokens"] / max(summary["seconds"], 1e-9))
    return summary | ({"rows": counts} if counts.get("dropped") or counts.get("truncated") else {})


@torch.no_grad()
def _suspects(scorer: CausalLoss, rows: Sequence[TokenRow], sharded: bool, most: int = 5) -> str:
    """Which of `rows` has a loss that is not finite; all, if a sharded model can't tell alone."""
    place, bad = next(scorer.parameters()).device, []
    for row in () if sharded else rows:
        loss, _ = scorer(*(tensor.to(place) for tensor in collate([row])))
        bad += [] if loss.isfinite() else [row]
    shown = bad or rows
    names = [row.name or f"a row of ids {row.ids[:6]} …" for row in shown[:most]]
    named = ", ".join(f"{n} ({len(row)} tokens)" for n, row in zip(names, shown, strict=False))
    named += f" and {len(shown) - most} more" * (len(shown) > most)
    if len(bad) == len(rows) > 1:
        return f"every row of its batch, so the weights are at fault: {named}"
    return f"{'row' if bad else 'in a batch of'} {named}"


def batches_of(
    rows_of: RowsOf, stage: StageSettings, seed: int, ends: frozenset[int]
) -> tuple[EpochBatches, dict[str, int]]:
    """Batches by step as `stage` wants them; rows of the last epoch kept, dropped, truncated."""
    counts: dict[str, int] = {}

    def fitting(epoch: int, step: int) -> list[TokenRow]:
        rows = rows_of(epoch, step)
        if stage.packing == "concatenated":
            rng = Random(f"order {seed} {epoch}")
            return concatenate(rng.sample(rows, len(rows)), stage.block)
        rows, found = fit_rows(rows, stage.block, stage.too_long, ends)
        counts.update(found)
        return rows

    kind = EpochBatches if stage.packing == "none" else PackedBatches
    return kind(fitting, stage.tokens_per_batch, seed, stage.block), counts


def text_plan(vocabulary: UnitVocabulary, corpora: Corpora, steps: int, seed: int) -> RowsOf:
    """Rows of the text stage: a curriculum for the first quarter of the steps, then all kinds."""

    def rows_of(epoch: int, step: int) -> list[TokenRow]:
        rng, first = Random(f"text {seed} {epoch}"), step < CURRICULUM * steps
        return document_rows(vocabulary, corpora.documents(rng, TEXT_EPOCH, first))

    return rows_of


@dataclass(frozen=True)
class Replay:
    """What a stage replays of earlier ones: documents, and unit sequences (n,).

    `shares` are of the stage's own rows; tokens of documents count `text_weight` times.
    """

    vocabulary: UnitVocabulary
    corpora: Corpora
    shares: dict[str, float]
    units: Sequence[np.ndarray] = ()
    text_weight: float = 1.0

    def rows(self, rng: Random, own: int) -> list[TokenRow]:
        """What stands beside `own` rows of the stage."""
        texts, speech = (round(self.shares.get(kind, 0) * own) for kind in ("text", "units"))
        spoken = rng.choices(self.units, k=speech) if self.units else []
        documents = self.corpora.documents(rng, texts)
        rows = document_rows(self.vocabulary, documents, self.text_weight)
        return rows + [unit_row(self.vocabulary, units) for units in spoken]


def stage1_plan(own: Sequence[TokenRow], replay: Replay, seed: int) -> RowsOf:
    """Rows of stage 1: every token of every unit sequence (`own`), and documents."""
    return lambda epoch, step: [*own, *replay.rows(Random(f"stage 1 {seed} {epoch}"), len(own))]


def stage2_plan(
    tasks: Sequence[Sequence[TokenRow]], replay: Replay, speaking: float, seed: int
) -> RowsOf:
    """Rows of stage 2: ASR and TTS instructions, with documents and unlabelled units beside them.

    An epoch holds `speaking` TTS rows for every ASR row: all rows of the task that runs out first,
    and a new sample of the other's.
    """
    shared = [(rows, s) for rows, s in zip(tasks, (1.0, speaking), strict=True) if len(rows)]
    size = min((len(rows) / share for rows, share in shared), default=0.0)

    def rows_of(epoch: int, step: int) -> list[TokenRow]:
        rng = Random(f"stage 2 {seed} {epoch}")
        own = [row for rows, share in shared for row in rng.sample(rows, int(size * share))]
        return own + replay.rows(rng, len(own))

    return rows_of


def always(rows: list[TokenRow]) -> RowsOf:
    """The same rows in every epoch."""
    return lambda epoch, step: rows


def unit_row(vocabulary: UnitVocabulary, units: np.ndarray, name: str = "") -> TokenRow:
    """Units (n,) alone as a row, all of which is learned."""
    ids = [vocabulary.begin, *vocabulary.encode_units(units)]
    return TokenRow(ids, [0.0] + [1.0] * (len(ids) - 1), name)


# --- held-out metrics ----------------------------------------------------------------------------
def unit_perplexity(
    model: transformers.PreTrainedModel, vocabulary: UnitVocabulary, units: Sequence[np.ndarray]
) -> float:
    """exp(mean negative log-likelihood) per token of unit sequences (n,); guessing: all ids."""
    rows = [unit_row(vocabulary, u).ids for u in units]
    tokens = sum(len(row) - 1 for row in rows)
    return math.exp(-sum(log_likelihoods(model, rows)) / max(tokens, 1))


def text_accuracy(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    questions: Sequence[Question],
    limit: int,
) -> dict[str, float]:
    """Share of written questions, by kind, answered word for word in at most `limit` tokens."""
    prompts = [question_prompt(vocabulary, question.text) for question in questions]
    right: dict[str, list[bool]] = {}
    for ids, asked in zip(generate(model, vocabulary, prompts, limit), questions, strict=True):
        right.setdefault(asked.kind, []).append(vocabulary.decode_text(ids) == asked.answer)
    return {kind: float(np.mean(answers)) for kind, answers in right.items()}
