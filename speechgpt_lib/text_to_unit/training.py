"""Pairs of text and merged units → a trained text-to-unit model, through the shared loop.

**Differs from the paper** in `lab`: a synthetic voice and a closed world instead of LibriSpeech; an
aligned start (`align_start`); text in characters, since a few thousand sentences are too few for
word pieces (held-out unit error rate .67 against .33 at equal cost).
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.text_to_unit import model as parts
from speechgpt_lib.text_to_unit.model import PAD, POSITIONS, PairVocabulary, pad_rows
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.training.attention import training_attention
from speechgpt_lib.training.batches import Epochs, shuffled_buckets
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions


def train_text_to_unit(
    pairs: list[tuple[str, np.ndarray]],
    unit_count: int,
    settings: TextToUnitSettings,
    work: Path,
    options: TrainingOptions,
    *,
    inventory_id: str,
) -> tuple[TextToUnit, dict]:
    """Train on (text, merged units (n,)) pairs; returns (model, summary of the loop).

    Raises UserError: no pairs; a pair that is empty, too long or has a unit out of range.
    """
    if not pairs:
        raise UserError("there are no pairs of text and units: run 01_unit_extraction.ipynb first")
    tokenizer = parts.train_tokenizer((text for text, _ in pairs), settings.pieces)
    vocabulary = PairVocabulary(tokenizer, unit_count)
    encoded = []
    for text, units in pairs:
        if not len(units):
            raise UserError(f"the pair of {text[:40]!r} has no units: extract them again")
        source, target = vocabulary.encode_text(text), vocabulary.encode_units(units)
        if max(len(source), len(target)) > POSITIONS:
            found = f"has {len(source)} pieces and {len(target)} units, the model reads {POSITIONS}"
            raise UserError(f"the pair of {text[:40]!r} {found} of each: cut it into sentences")
        # Half a gigabyte for LibriSpeech; lists would take ten times that.
        encoded.append((np.array(source, np.int32), np.array(target, np.int32)))
    rate = float(np.mean([len(units) / len(text) for text, units in encoded]))
    model = parts.build_model(settings, vocabulary, rate, options.seed)
    batches = PairBatches(encoded, settings.tokens_per_batch, options.seed)

    def step_function(phase: str, modules: dict, batch, step: int):
        sources, targets = (tensor.to(options.device) for tensor in batch)
        loss, count, right = modules["text_to_unit"](sources, targets)
        return loss, count, {"accuracy": right / count.clamp(min=1)}

    with training_attention(model, options.device):
        task = Task({"text_to_unit": parts.PairLoss(model)}, step_function, batches)
        summary = train(task, settings.optimization, work, options)
    model, beams = model.cpu().eval(), settings.beams
    return TextToUnit(model, vocabulary, inventory_id, settings, rate, beams=beams), summary


class PairBatches:
    """Batches by step number: pairs of like length, `tokens_per_batch` units with their padding."""

    def __init__(self, pairs: list[tuple], tokens_per_batch: int, seed: int):
        def plan(epoch: int, first: int) -> list[list[int]]:
            rng = random.Random(f"text to unit {seed} {epoch}")
            return shuffled_buckets([len(units) for _, units in pairs], tokens_per_batch, rng)

        self.pairs, self.epochs = pairs, Epochs(plan)

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[torch.Tensor, ...]:
        """Texts (rows, pieces) and units (rows, units) of this process, padded on the right."""
        batch = [self.pairs[k] for k in self.epochs.at(step)]
        # With more processes than rows, take part with a row that counts nothing.
        mine = batch[rank::world_size] or [(batch[0][0], [PAD])]
        texts, units = zip(*mine, strict=True)
        return pad_rows(texts, PAD), pad_rows(units, PAD)
