"""Units and waves → a trained generator; merged units and durations → a trained duration predictor.

**Differs from the paper** in `lab`: the generator first learns from the reconstruction loss alone (a warm-up), at three
resolutions of the spectrum, and the discriminators join for the last fifth of the steps only.  HiFi-GAN starts with
both and trains for days; speech that can be understood within minutes comes from the spectrum, what the discriminators
add is texture; and they learn at a quarter of the generator's rate, which is many times the published one.  With
`adversarial_from: 0` and `discriminator_rate: 1` it is as published.  An exponential average of the generator's weights
(decay 0.98, 0.99) was tried and left out: words were understood no better or worse.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import mse_loss

from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics.waveform import log_mel
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.training.loop import train
from speechgpt_lib.training.prefetch import Prefetched
from speechgpt_lib.units.sequence import check_range
from speechgpt_lib.vocoder.discriminators import Discriminators
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    reconstruction_loss,
)
from speechgpt_lib.vocoder.speech import Pair, Speech
from speechgpt_lib.vocoder.synthesis import pad_units

# HiFi-GAN's weights 1 : 2 : 45, divided by 45 so that the loss stays on one scale when the discriminators join.
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 1 / 45, 2 / 45
DURATION_BATCH = 16
QUIETEST, LOUDEST = (
    -6.0,
    3.0,
)  # log amplitudes that a picture of a spectrogram shows as black and as brightest


def train_vocoder(
    speech: Speech,
    unit_count: int,
    settings: VocoderSettings,
    work: Path,
    *,
    seed: int,
    device: str = "cpu",
    world_size: int = 1,
    on_log=None,
    sample: np.ndarray | None = None,
    ahead: int = 0,
    joined_from: Path | None = None,
) -> tuple[UnitGenerator, dict]:
    """Train a generator through the shared loop, resuming from what lies in `work`.

    Args:
        sample: frames (n,) of an utterance that is spoken now and then as training goes on, into `work/samples/`: a sound file and a
            picture of its mel spectrogram each time.
        ahead: how many batches to read beforehand, beside the training: for speech that lies on a disk.
        joined_from: work folder of a training that has passed the step at which the discriminators join.  This one starts there, with
            the same batches and the same schedule, but without them: what they are good for is the difference.

    Returns:
        (generator with weight norm, summary of the loop plus `adversarial_steps`).

    Raises:
        UserError: no utterance as long as a segment, or what the loop raises.
    """
    segment, steps = settings.segment_frames, settings.optimization.steps
    long_enough = np.flatnonzero(speech.lengths >= segment)
    if not len(long_enough):
        found = len(speech.lengths)
        raise UserError(
            f"none of {found} utterances has {segment} frames: lower vocoder.segment_frames or give more speech"
        )
    torch.manual_seed(seed)
    generator = UnitGenerator(unit_count, settings, len(speech.names))
    discriminators = Discriminators(settings.discriminator_channels)
    joined = round(settings.adversarial_from * steps)
    adversarial_from = joined if joined_from is None else steps

    def batch_at(step: int, rank: int, world_size: int):
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(long_enough, settings.batch_size)
        starts = [int(rng.integers(0, speech.lengths[i] - segment + 1)) for i in chosen]
        mine = list(zip(chosen, starts, strict=True))[rank::world_size]
        units, waves = (
            np.stack(parts)
            for parts in zip(*(speech.piece(i, s, segment) for i, s in mine), strict=True)
        )
        return (
            torch.from_numpy(units),
            torch.from_numpy(waves),
            torch.from_numpy(speech.speakers[[i for i, _ in mine]]),
        )

    made: dict[
        int, torch.Tensor
    ] = {}  # the waves of this step: both phases need them, the generator runs once

    def step_function(phase: str, modules: dict, batch, step: int):
        units, real, speakers = (tensor.to(device) for tensor in batch)
        if phase == "discriminators":
            if step < adversarial_from:
                return None
            made[step] = modules["generator"](units, speakers)
            # One pass over both halves: DistributedDataParallel wants a single forward before each backward.
            judged = modules["discriminators"](torch.cat([real, made[step].detach()]))
            loss = discriminator_loss(*_halves(judged, len(real)))
            return loss * len(real), len(real), {}
        ours = made.pop(step) if step >= adversarial_from else modules["generator"](units, speakers)
        reconstruction = reconstruction_loss(ours, real)
        metrics = {"reconstruction": reconstruction.detach()}
        loss = reconstruction
        if step >= adversarial_from:
            adversarial, matching = _judged_loss(discriminators, ours, real)
            metrics |= {"adversarial": adversarial.detach(), "feature_matching": matching.detach()}
            loss = loss + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * matching
        return loss * len(real), len(real), metrics

    listening = [] if sample is None else sample_steps(settings)
    to_keep = joined if joined_from is None and 0 < joined < steps else None

    def visit(step: int) -> None:
        if step in listening:
            speak_sample(generator, sample, work, step)
        if step == to_keep and not (work / "joined").exists():
            with atomic_path(work / "joined") as temporary:
                shutil.copytree(
                    work / "checkpoints" / f"step_{step:08d}", temporary / f"step_{step:08d}"
                )

    if joined_from is not None and not (work / "checkpoints").exists():
        with atomic_path(work / "checkpoints") as temporary:
            shutil.copytree(joined_from / "joined", temporary)
    summary = train(
        {"generator": generator, "discriminators": discriminators},
        step_function,
        Prefetched(batch_at, ahead) if ahead else batch_at,
        settings.optimization,
        work,
        seed=seed,
        world_size=world_size,
        device=device,
        phases={"discriminators": ["discriminators"], "generator": ["generator"]},
        learning_rates={"discriminators": settings.discriminator_rate},
        on_log=on_log,
        visits={step: functools.partial(visit, step) for step in {*listening, to_keep} - {None}},
    )
    return generator.eval(), summary | {"adversarial_steps": steps - adversarial_from}


def sample_steps(settings: VocoderSettings) -> list[int]:
    """When the sample is spoken: often early, when much changes; where the discriminators join; at the end."""
    steps = settings.optimization.steps
    return sorted(
        {
            max(1, steps // 32),
            max(1, steps // 8),
            max(1, steps // 2),
            max(1, round(settings.adversarial_from * steps)),
            steps,
        }
    )


@torch.inference_mode()
def speak_sample(generator: UnitGenerator, frames: np.ndarray, work: Path, step: int) -> None:
    """Write `samples/step_000300.wav` and `.png`, the log-mel spectrogram with time from left to right."""
    from matplotlib.image import imsave

    weights = generator.dict.weight
    units = torch.from_numpy(np.asarray(frames, dtype=np.int64))[None].to(weights.device)
    speakers = torch.zeros(1, dtype=torch.int64, device=weights.device)
    wave = generator(units, speakers)[0].float().cpu().numpy()
    path = work / "samples" / f"step_{step:06d}"
    write_audio(path.with_suffix(".wav"), wave)
    with atomic_path(path.with_suffix(".png")) as temporary:
        imsave(
            temporary,
            log_mel(wave).T,
            format="png",
            origin="lower",
            cmap="magma",
            vmin=QUIETEST,
            vmax=LOUDEST,
        )


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
        raise UserError(
            "there are no unit sequences to learn durations from: run 01_unit_extraction.ipynb first"
        )
    torch.manual_seed(seed)
    predictor = DurationPredictor(unit_count, settings.embedding)

    def batch_at(step: int, rank: int, world_size: int):
        chosen = np.random.default_rng((seed, step)).choice(len(sequences), DURATION_BATCH)[
            rank::world_size
        ]
        return pad_units([sequences[i][0] for i in chosen]), pad_units(
            [sequences[i][1] for i in chosen]
        )[0]

    def step_function(phase: str, modules: dict, batch, step: int):
        (units, mask), durations = batch
        units, mask, durations = units.to(device), mask.to(device), durations.to(device)
        predicted, target = (
            modules["durations"](units, mask)[mask],
            torch.log1p(durations[mask].float()),
        )
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
