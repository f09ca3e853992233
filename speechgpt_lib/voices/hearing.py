"""The encoder learns to hear a voice: its frames are to give the units that others' would.

The synthesiser (or the run itself) says the sentences that the person read; frames of both are
aligned, and the units of its frames are the targets of the person's.  The centroids stay, so the
units keep their meaning for the language model and the vocoder; frames of the run's own voices,
with their own units as targets, stand in every batch beside the new ones, so that nothing is lost.
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

from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.schema import VoiceSettings
from speechgpt_lib.training.attention import training_attention
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.features import framing
from speechgpt_lib.units.hubert import sample_mask
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.voices.alignment import align
from speechgpt_lib.voices.changes import changed

SHARPNESS = 0.15  # of the choice among units, beside the mean squared distance to the chosen one
MASKED = (0.005, 10)  # share of frames that start a masked span, and its length
UNKNOWN = -100  # the target of padding


class Heard(nn.Module):
    """An encoder up to the inventory's layer, and how far its frames are from the units wanted."""

    def __init__(self, inventory: UnitInventory, scale: float):
        super().__init__()
        self.encoder = copy.deepcopy(inventory.encoder)
        blocks = self.encoder.encoder
        blocks.layers = blocks.layers[: inventory.layer]
        if self.encoder.config.do_stable_layer_norm:
            blocks.layer_norm = nn.Identity()  # one behind the last block is not applied
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(name != "masked_spec_embed")
        self.register_buffer("centroids", torch.tensor(inventory.kmeans.centroids), False)
        self.scale = scale

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


def adapt_encoder(
    inventory: UnitInventory,
    recordings: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    own: Sequence[np.ndarray],
    settings: VoiceSettings,
    work: Path,
    options: TrainingOptions,
) -> tuple[UnitInventory, dict]:
    """The inventory with an encoder that hears a voice; the summary of the training.

    recordings: waves (samples,) at 16 kHz; references: features (frames, width) of the same
    sentences in a voice that the encoder knows; own: waves of the run's own voices.
    """
    kmeans = inventory.kmeans
    wanted = [kmeans.assign(y) for y in references]
    pairs = zip(references, wanted, strict=True)
    distance = np.mean([np.square(y - kmeans.centroids[u]).sum(1).mean() for y, u in pairs])
    model = Heard(inventory, SHARPNESS * float(distance))
    kept = [(wave, kmeans.assign(inventory.features(wave))) for wave in own]
    heard, summary, seconds, all_steps = inventory, {}, 0.0, settings.listening.steps
    first = max(1, all_steps // 3)  # then the alignment is better
    for number, steps in enumerate((first, max(1, all_steps - first))):
        paths = align([heard.features(wave) for wave in recordings], references)
        targets = [units[path] for units, path in zip(wanted, paths, strict=True)]
        new = list(zip(recordings, targets, strict=True))
        batch_at = Crops(inventory, new, kept, settings, options.seed + number)
        optimization = settings.listening.model_copy(update={"steps": steps})
        summary = _fit(model, batch_at, optimization, work / f"listening_{number}", options)
        seconds += summary.get("seconds", 0.0)
        heard = model.whole(inventory)
    return heard, summary | {"seconds": round(seconds, 1)}


def _fit(model: Heard, batch_at: Callable, optimization, work: Path, options) -> dict:
    def step_function(phase: str, modules: dict, batch: tuple, step: int):
        loss, weight, right = modules["encoder"](*(tensor.to(options.device) for tensor in batch))
        return loss, weight, {"right_units": right}

    work.mkdir(parents=True, exist_ok=True)
    model.train()
    with training_attention(model.encoder, options.device):
        summary = train(
            Task({"encoder": model}, step_function, batch_at), optimization, work, options
        )
    model.eval().to("cpu")
    return summary


class Crops:
    """Batches of crops by step: recordings, changed at random, beside the run's own voices."""

    def __init__(self, inventory, new: list, kept: list, settings: VoiceSettings, seed: int):
        self.new, self.kept, self.settings, self.seed = new, kept, settings, seed
        self.hop, self.window = framing(inventory.encoder.config)
        self.frames = int(settings.crop_seconds * SAMPLE_RATE) // self.hop
        self.prepare = inventory.feature_encoder.samples

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Waves (crops, samples) and units (crops, frames) of that step."""
        rng, waves, targets = np.random.default_rng((self.seed, step)), [], []
        for _ in range(self.settings.crops):
            if rng.random() < self.settings.voice_share or not self.kept:
                wave, units = self.new[rng.integers(len(self.new))]
                wave, rate = changed(wave, rng)
                frame = np.arange(int(len(units) / rate)) * rate
                units = units[np.minimum(np.rint(frame).astype(int), len(units) - 1)]
            else:
                wave, units = self.kept[rng.integers(len(self.kept))]
            wave, units = self._crop(wave, units, rng)
            waves.append(self.prepare(wave))
            targets.append(torch.from_numpy(units))
        chosen = slice(rank, None, world_size)
        return torch.stack(waves[chosen]), torch.stack(targets[chosen])

    def _crop(self, wave: np.ndarray, units: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
        size = (self.frames - 1) * self.hop + self.window
        count = min(len(units), 1 + (len(wave) - self.window) // self.hop)
        start = int(rng.integers(0, max(0, count - self.frames) + 1))
        wave = wave[start * self.hop :][:size]
        units = units[start:count][: self.frames]
        more = (0, self.frames - len(units))
        return np.pad(wave, (0, size - len(wave))), np.pad(units, more, constant_values=UNKNOWN)
