"""Pairs of units and waves → a trained generator; merged units and durations → a trained duration predictor.

**Differs from the paper** in `lab`: the generator first learns from the reconstruction loss alone (a warm-up), at three
resolutions of the spectrum, and the discriminators join for the last fifth of the steps only.  HiFi-GAN starts with
both and trains for days; speech that can be understood within minutes comes from the spectrum, what the discriminators
add is texture.  With `adversarial_from: 0` they join at once, as published.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import mse_loss

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.training.loop import train
from speechgpt_lib.units.sequence import check_range
from speechgpt_lib.vocoder.discriminators import Discriminators
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import HOP, UnitGenerator
from speechgpt_lib.vocoder.losses import discriminator_loss, feature_matching_loss, generator_loss, reconstruction_loss

# HiFi-GAN's weights 1 : 2 : 45, divided by 45 so that the loss stays on one scale when the discriminators join.
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 1 / 45, 2 / 45
DURATION_BATCH = 16

Pair = tuple[np.ndarray, np.ndarray]


def train_vocoder(
    pairs: list[Pair],
    unit_count: int,
    settings: VocoderSettings,
    work: Path,
    *,
    seed: int,
    device: str = "cpu",
    world_size: int = 1,
    on_log=None,
) -> tuple[UnitGenerator, dict]:
    """Train a generator through the shared loop, resuming from what lies in `work`.

    pairs: units (frames,), one id a frame, not merged; and the wave they come from, float32 at 16 kHz, at least
    frames · 320 samples.  Returns (generator with weight norm, summary of the loop plus `adversarial_steps`).

    Raises:
        UserError: ids out of range, a wave that does not reach as far as its units, or no pair as long as a segment.
    """
    segment = settings.segment_frames
    check_pairs(pairs, unit_count)
    long_enough = [i for i, (units, _) in enumerate(pairs) if len(units) >= segment]
    if not long_enough:
        raise UserError(f"none of {len(pairs)} utterances has {segment} frames: lower vocoder.segment_frames or give more speech")
    torch.manual_seed(seed)
    generator, discriminators = UnitGenerator(unit_count, settings), Discriminators(settings.discriminator_channels)
    joined = round(settings.adversarial_from * settings.optimization.steps)

    def batch_at(step: int, rank: int, world_size: int):
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(long_enough, settings.batch_size)
        starts = [int(rng.integers(0, len(pairs[i][0]) - segment + 1)) for i in chosen]
        mine = list(zip(chosen, starts, strict=True))[rank::world_size]
        units = np.stack([pairs[i][0][s : s + segment] for i, s in mine])
        waves = np.stack([pairs[i][1][s * HOP : (s + segment) * HOP] for i, s in mine])
        return torch.from_numpy(units).long(), torch.from_numpy(waves)

    made: dict[int, torch.Tensor] = {}  # the waves of this step: both phases need them, the generator runs once

    def step_function(phase: str, modules: dict, batch, step: int):
        units, real = (tensor.to(device) for tensor in batch)
        if phase == "discriminators":
            if step < joined:
                return None
            made[step] = modules["generator"](units)
            # One pass over both halves: DistributedDataParallel wants a single forward before each backward.
            judged = modules["discriminators"](torch.cat([real, made[step].detach()]))
            loss = discriminator_loss(*_halves(judged, len(real)))
            return loss * len(real), len(real), {}
        ours = made.pop(step) if step >= joined else modules["generator"](units)
        reconstruction = reconstruction_loss(ours, real)
        metrics = {"reconstruction": reconstruction.detach()}
        loss = reconstruction
        if step >= joined:
            adversarial, matching = _judged_loss(discriminators, ours, real)
            metrics |= {"adversarial": adversarial.detach(), "feature_matching": matching.detach()}
            loss = loss + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * matching
        return loss * len(real), len(real), metrics

    summary = train(
        {"generator": generator, "discriminators": discriminators},
        step_function,
        batch_at,
        settings.optimization,
        work,
        seed=seed,
        world_size=world_size,
        device=device,
        phases={"discriminators": ["discriminators"], "generator": ["generator"]},
        on_log=on_log,
    )
    return generator.eval(), summary | {"adversarial_steps": settings.optimization.steps - joined}


def _halves(judged: list, count: int) -> tuple[list, list]:
    """Judgements of a batch of real and made waves → those of the real, those of the made."""
    real = [(scores[:count], [f[:count] for f in features]) for scores, features in judged]
    made = [(scores[count:], [f[count:] for f in features]) for scores, features in judged]
    return real, made


def _judged_loss(discriminators: Discriminators, made: torch.Tensor, real: torch.Tensor) -> tuple:
    """(adversarial, feature matching) losses of the generator; the discriminators get no gradient of them."""
    discriminators.requires_grad_(False)
    try:
        judged_real, judged_made = discriminators(real), discriminators(made)
    finally:
        discriminators.requires_grad_(True)
    return generator_loss(judged_made), feature_matching_loss(judged_real, judged_made)


def train_durations(
    sequences: list[Pair],
    unit_count: int,
    settings: VocoderSettings,
    work: Path,
    *,
    seed: int,
    device: str = "cpu",
    world_size: int = 1,
    on_log=None,
) -> tuple[DurationPredictor, dict]:
    """Train a duration predictor on merged units (n,) and their durations (n,) in frames.

    The loss is the mean squared error of log(d + 1).  Returns (predictor, summary of the loop).  Raises UserError as
    `train_vocoder` does.
    """
    for index, (units, durations) in enumerate(sequences):
        check_range(units, unit_count)
        if len(units) != len(durations) or not len(units):
            found = f"{len(units)} units and {len(durations)} durations"
            raise UserError(f"sequence {index} has {found}: expected one each, at least one")
    if not sequences:
        raise UserError("there are no unit sequences to learn durations from: run 01_unit_extraction.ipynb first")
    torch.manual_seed(seed)
    predictor = DurationPredictor(unit_count, settings.embedding)

    def batch_at(step: int, rank: int, world_size: int):
        chosen = np.random.default_rng((seed, step)).choice(len(sequences), DURATION_BATCH)[rank::world_size]
        return pad_units([sequences[i][0] for i in chosen]), pad_units([sequences[i][1] for i in chosen])[0]

    def step_function(phase: str, modules: dict, batch, step: int):
        (units, mask), durations = batch
        units, mask, durations = units.to(device), mask.to(device), durations.to(device)
        predicted, target = modules["durations"](units, mask)[mask], torch.log1p(durations[mask].float())
        frames_off = (torch.exp(predicted.detach()) - 1 - durations[mask]).abs().mean()
        return mse_loss(predicted, target, reduction="sum"), mask.sum(), {"frames_off": frames_off}

    summary = train(
        {"durations": predictor},
        step_function,
        batch_at,
        settings.duration_optimization,
        work,
        seed=seed,
        world_size=world_size,
        device=device,
        on_log=on_log,
    )
    return predictor.eval(), summary


def pad_units(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths → (values (batch, n) int64 padded with 0, mask (batch, n) true where a value is)."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.as_tensor(np.asarray(row))
    return values, torch.arange(values.shape[1]) < lengths[:, None]


def check_pairs(pairs: list[Pair], unit_count: int) -> None:
    """Refuse units out of range and waves that end before their units do."""
    for index, (units, wave) in enumerate(pairs):
        check_range(units, unit_count)
        if len(wave) < len(units) * HOP:
            raise UserError(
                f"utterance {index} has {len(units)} frames but {len(wave)} samples, fewer than {len(units) * HOP}: "
                "units must be one a frame of 20 ms, of this very wave at 16 kHz"
            )
