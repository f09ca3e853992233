"""Pairs of text and merged units → a trained text-to-unit model, through the shared loop."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.text_to_unit.model import PAD, PairLoss, PairVocabulary, build_model, train_tokenizer
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.training.loop import train

Pair = tuple[list[int], list[int]]


def train_text_to_unit(
    pairs: list[tuple[str, np.ndarray]],
    unit_count: int,
    settings: TextToUnitSettings,
    work: Path,
    *,
    inventory_id: str,
    seed: int,
    device: str = "cpu",
    world_size: int = 1,
    on_log=None,
) -> tuple[TextToUnit, dict]:
    """Train on (text, merged units (n,)) pairs; returns (model, summary of the loop)."""
    if not pairs:
        raise UserError("there are no pairs of text and units to learn from: run notebook 01_unit_extraction.ipynb first")
    vocabulary = PairVocabulary(train_tokenizer((text for text, _ in pairs), settings.pieces), unit_count)
    encoded = [(vocabulary.encode_text(text), vocabulary.encode_units(units)) for text, units in pairs]
    rate = float(np.mean([len(units) / len(text) for text, units in encoded]))
    model = build_model(settings, vocabulary, rate, seed)
    batches = PairBatches(encoded, settings.tokens_per_batch, seed)

    def step_function(phase: str, modules: dict, batch, step: int):
        sources, targets = (tensor.to(device) for tensor in batch)
        loss, count, right = modules["text_to_unit"](sources, targets)
        return loss, count, {"accuracy": right / count.clamp(min=1)}

    summary = train(
        {"text_to_unit": PairLoss(model, vocabulary, settings.noise)},
        step_function,
        batches,
        settings.optimization,
        work,
        seed=seed,
        world_size=world_size,
        device=device,
        on_log=on_log,
    )
    return TextToUnit(model.cpu().eval(), vocabulary, inventory_id, rate, settings), summary


class PairBatches:
    """Batches of pairs of like length by step number, under a budget of target tokens."""

    def __init__(self, pairs: list[Pair], tokens_per_batch: int, seed: int):
        self.pairs, self.tokens_per_batch, self.seed = pairs, tokens_per_batch, seed
        self._epoch, self._first, self._batches = -1, 0, []

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._epoch += 1
            self._batches = self._plan(self._epoch)
        whole = [self.pairs[k] for k in self._batches[step - self._first]]
        mine = whole[rank::world_size]
        if not mine:  # more processes than rows: take part with a row that counts nothing
            return pad_right([whole[0][0]]), pad_right([[PAD]])
        return pad_right([text for text, _ in mine]), pad_right([units for _, units in mine])

    def _plan(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"text to unit {self.seed} {epoch}")
        order = sorted(range(len(self.pairs)), key=lambda k: len(self.pairs[k][1]) + 6 * rng.random())
        batches: list[list[int]] = [[]]
        longest = 0
        for k in order:
            longest = max(longest, len(self.pairs[k][1]))
            if batches[-1] and longest * (len(batches[-1]) + 1) > self.tokens_per_batch:
                batches.append([])
                longest = len(self.pairs[k][1])
            batches[-1].append(k)
        rng.shuffle(batches)
        return batches


def pad_right(rows: list[list[int]]) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
