"""The encoder learns to hear past who speaks: for the same words, the same units.

An encoder keeps much of a voice, and of a voice of another kind it makes other units.  So it goes
on learning: frames of others are to give the units that one voice, which it knows, gives at the
same moment of the same sentence (cross-entropy over the distances to the centroids).  The centroids
stay, so a unit goes on meaning what it meant; frames of that voice, with the units they had, stand
in every batch, so that nothing is lost.  ContentVec (Qian et al. 2022, arXiv 2204.09224) has one
voice for all, too; it converts speech to that voice before HuBERT learns, here the sentence is
spoken again after it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechgpt_lib.corpora.audio import samples_of
from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.recipes.schema import HearingSettings, Optimization
from speechgpt_lib.training.attention import training_attention
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.features import framing
from speechgpt_lib.units.hubert import sample_mask
from speechgpt_lib.units.inventory import UnitInventory

SHARPNESS = 0.15  # of the choice among units, beside the mean squared distance to the chosen one
MASKED = (0.005, 10)  # share of frames that start a masked span, and its length
UNKNOWN = -100  # the target of padding

# A wave (samples,) at 16 kHz, float32 or int16, and the units (frames,) that it is to give.
Pair = tuple[np.ndarray, np.ndarray]


def same_moments(own: Sequence[Phone], other: Sequence[Phone], frames: int, of: int) -> np.ndarray:
    """For each of `frames` frames the one, of `of`, in which `other` says the same: int (frames,).

    Time runs evenly within a phone.  Raises ValueError where the phones differ.
    """
    labels = [[phone.label for phone in phones] for phones in (own, other)]
    if labels[0] != labels[1]:
        raise ValueError(f"two readings of a sentence have different phones: {labels}")
    middle, hop = MINIMUM_SAMPLES / 2 / SAMPLE_RATE, HOP / SAMPLE_RATE
    here, there = ([phones[0].start, *(p.end for p in phones)] for phones in (own, other))
    lead = min(here[0], there[0])
    tail = 60.0  # seconds: what is outside the phones stays as far from them
    here, there = ([t[0] - lead, *t, t[-1] + tail] for t in (here, there))
    moments = np.interp(np.arange(frames) * hop + middle, here, there)
    return np.clip(np.round((moments - middle) / hop), 0, of - 1).astype(int)


class Heard(nn.Module):
    """An encoder up to the inventory's layer, and how far its frames are from the units wanted."""

    def __init__(self, inventory: UnitInventory, distance: float):
        """distance: the mean square of that from a frame to its centroid."""
        super().__init__()
        self.encoder = copy.deepcopy(inventory.encoder)
        blocks = self.encoder.encoder
        blocks.layers = blocks.layers[: inventory.layer]
        if self.encoder.config.do_stable_layer_norm:
            blocks.layer_norm = nn.Identity()  # one behind the last block is not applied
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(name != "masked_spec_embed")
        self.register_buffer("centroids", torch.tensor(inventory.kmeans.centroids), False)
        self.scale = SHARPNESS * distance

    def forward(self, waves: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """waves (batch, samples), targets (batch, frames) → loss, weight, share of right units."""
        mask = None
        if self.training:  # as SpecAugment does; transformers' own draws by another random source
            mask = sample_mask(*targets.shape, *MASKED).to(waves.device)
        x = self.encoder(waves, mask_time_indices=mask).last_hidden_state  # (batch, frames, width)
        distances = self.centroids.square().sum(1) - 2 * x @ self.centroids.T  # less ‖x‖²
        logits, wanted = (-distances / self.scale).flatten(0, 1), targets.flatten()
        loss = F.cross_entropy(logits, wanted, ignore_index=UNKNOWN, reduction="sum")
        known = wanted != UNKNOWN
        return loss, known.sum(), (logits.argmax(-1) == wanted)[known].float().mean()

    def whole(self, inventory: UnitInventory) -> UnitInventory:
        """The inventory with what was learned in its encoder; its units, and its id, are kept."""
        encoder = copy.deepcopy(inventory.encoder)
        encoder.load_state_dict({**encoder.state_dict(), **self.encoder.state_dict()})
        return replace(inventory, encoder=encoder.eval())


class Crops:
    """Batches of crops by step: a pure function of seed and step.

    draw: rng → a wave (samples,) and the units (frames,) that it is to give.
    change: (a crop, rng) → the crop as it is heard.
    """

    def __init__(
        self,
        inventory: UnitInventory,
        draw: Callable[[np.random.Generator], Pair],
        count: int,
        seconds: float,
        seed: int,
        change: Callable[[np.ndarray, np.random.Generator], np.ndarray] = lambda crop, rng: crop,
    ):
        self.draw, self.count, self.seed, self.change = draw, count, seed, change
        self.hop, self.window = framing(inventory.encoder.config)
        self.frames = int(seconds * SAMPLE_RATE) // self.hop
        self.prepare = inventory.feature_encoder.samples

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Waves (crops, samples) and units (crops, frames) of that step."""
        rng = np.random.default_rng((self.seed, step))
        crops = [self._crop(*self.draw(rng), rng) for _ in range(self.count)][rank::world_size]
        waves, targets = zip(*crops, strict=True)
        return torch.stack(waves), torch.stack(targets)

    def _crop(self, wave: np.ndarray, units: np.ndarray, rng) -> tuple[Tensor, Tensor]:
        size = (self.frames - 1) * self.hop + self.window
        count = min(len(units), 1 + (len(wave) - self.window) // self.hop)
        start = int(rng.integers(0, max(0, count - self.frames) + 1))
        wave = samples_of(wave[start * self.hop :][:size])
        units = units[start:count][: self.frames]
        wave = self.change(np.pad(wave, (0, size - len(wave))), rng)
        units = np.pad(units, (0, self.frames - len(units)), constant_values=UNKNOWN)
        return self.prepare(wave), torch.from_numpy(units)


def teach(
    model: Heard,
    batch_at: Crops,
    optimization: Optimization,
    work: Path,
    options: TrainingOptions,
) -> dict:
    """Trains on the batches; returns the summary of the training, whose log is in `work`."""

    def step_function(phase: str, modules: dict, batch: tuple, step: int):
        loss, weight, right = modules["encoder"](*(tensor.to(options.device) for tensor in batch))
        return loss, weight, {"right_units": right}

    work.mkdir(parents=True, exist_ok=True)
    model.train()
    with training_attention(model.encoder, options.device):
        task = Task({"encoder": model}, step_function, batch_at)
        summary = train(task, optimization, work, options)
    model.eval().to("cpu")
    return summary


def hear_past_voices(
    inventory: UnitInventory,
    others: Sequence[Pair],
    own: Sequence[Pair],
    settings: HearingSettings,
    work: Path,
    options: TrainingOptions,
) -> tuple[UnitInventory, dict]:
    """The inventory with an encoder that hears others as the voice of `own`, and the summary.

    others: what others said, with the units of that voice; own: what it said, with its units.
    """
    from speechgpt_lib.corpora.perturb import perturb  # it loads scipy

    frames = [(inventory.features(samples_of(wave)), units) for wave, units in own[:40]]
    centroids = inventory.kmeans.centroids
    distance = np.mean([np.square(x - centroids[units]).sum(1).mean() for x, units in frames])
    model = Heard(inventory, float(distance))

    def draw(rng: np.random.Generator) -> Pair:
        pairs = others if rng.random() < settings.others_share and others else own
        return pairs[rng.integers(len(pairs))]

    def change(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return perturb(crop, rng) if rng.random() < settings.perturbed else crop

    parts = settings.crops, settings.crop_seconds, options.seed, change
    summary = teach(model, Crops(inventory, draw, *parts), settings.optimization, work, options)
    heard = model.whole(inventory)
    parts = heard.encoder, heard.layer, heard.kmeans, heard.normalize
    return UnitInventory.create(*parts), summary
