"""Units and waves → a trained generator; merged units and durations → a duration predictor.

**Differs from the paper** in `lab`: the generator learns from the spectrum alone, at three
resolutions; discriminators, which add texture, join for the last twentieth of the steps, hear a
quarter of each batch (for the same sound they cost seven times as much as the generator) and learn
at a quarter of its rate.  HiFi-GAN starts with both (`adversarial_from: 0`, `judged: 0`,
`discriminator_rate: 1`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics.waveform import log_mel
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.training.batches import Prefetched
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.sequence import check_range
from speechgpt_lib.vocoder import losses
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.speech import Pair, Speech
from speechgpt_lib.vocoder.synthesis import pad_units

# HiFi-GAN's weights 1 : 2 : 45, divided by 45: the loss keeps its scale when discriminators join.
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 1 / 45, 2 / 45
DURATION_BATCH = 16
COLOURS = {"origin": "lower", "cmap": "magma", "vmin": -6.0, "vmax": 3.0}  # log amplitudes


def train_vocoder(
    speech: Speech,
    unit_count: int,
    settings: VocoderSettings,
    work: Path,
    options: TrainingOptions,
    *,
    sample: np.ndarray | None = None,
    ahead: int = 0,
    joined_from: Path | None = None,
) -> tuple[UnitGenerator, dict]:
    """Train a generator through the shared loop, resuming from what lies in `work`.

    sample: frames (n,) of an utterance that is spoken now and then, into `work/samples/`.
    ahead: batches to read beforehand, beside the training: for speech that lies on a disk.
    joined_from: work folder of a training that the discriminators have joined; this one starts at
        that step, the same but without them: the difference is what they do.
    Returns (generator with weight norm, summary of the loop plus `adversarial_steps`).  Raises
    UserError when no utterance is as long as a segment, or what the loop raises.
    """
    pieces = pieces_of(speech, settings, options.seed)
    torch.manual_seed(options.seed)
    generator = UnitGenerator(unit_count, settings, len(speech.names))
    discriminators = losses.Discriminators(settings.discriminator_channels)
    steps = settings.optimization.steps
    joined = round(settings.adversarial_from * steps)
    adversarial_from = joined if joined_from is None else steps
    moments = {max(1, n) for n in (steps // 32, steps // 8, steps // 2, joined)} | {steps}
    listening = set() if sample is None else moments
    to_keep = {joined} if joined_from is None and 0 < joined < steps else set()

    def visit(step: int) -> None:
        if step in listening:
            speak_sample(generator, sample, work, step)
        if step in to_keep and not (work / "joined").exists():
            name = f"step_{step:08d}"
            with atomic_path(work / "joined") as temporary:
                shutil.copytree(work / "checkpoints" / name, temporary / name)

    if joined_from is not None and not (work / "checkpoints").exists():
        with atomic_path(work / "checkpoints") as temporary:
            shutil.copytree(joined_from / "joined", temporary)
    task = Task(
        {"generator": generator, "discriminators": discriminators},
        adversarial_loss(discriminators, adversarial_from, settings.judged, options.device),
        Prefetched(pieces, ahead) if ahead else pieces,
        phases={"discriminators": ["discriminators"], "generator": ["generator"]},
        learning_rates={"discriminators": settings.discriminator_rate},
        visits={step: partial(visit, step) for step in listening | to_keep},
    )
    summary = train(task, settings.optimization, work, options)
    return generator.eval(), summary | {"adversarial_steps": steps - adversarial_from}


def pieces_of(speech: Speech, settings: VocoderSettings, seed: int) -> Callable:
    """Batches by step number: pieces of `segment_frames` frames from utterances drawn by seed."""
    count = settings.segment_frames
    long_enough = np.flatnonzero(speech.lengths >= count)
    if not len(long_enough):
        found = f"none of {len(speech.lengths)} utterances has {count} frames"
        raise UserError(f"{found}: lower vocoder.segment_frames or give more speech")

    def batch_at(step: int, rank: int, world_size: int) -> tuple[torch.Tensor, ...]:
        """Units (batch, frames), waves (batch, samples), speakers (batch,) of this process."""
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(long_enough, settings.batch_size)
        starts = [int(rng.integers(0, speech.lengths[i] - count + 1)) for i in chosen]
        mine = list(zip(chosen, starts, strict=True))[rank::world_size]
        units, waves = zip(*(speech.piece(i, start, count) for i, start in mine), strict=True)
        parts = np.stack(units), np.stack(waves), speech.speakers[[i for i, _ in mine]]
        return tuple(map(torch.from_numpy, parts))

    return batch_at


def adversarial_loss(
    judge: losses.Discriminators, start: int, judged: int, device: str
) -> Callable:
    """The step function of discriminators, then generator; to `start` of the spectrum alone.

    judged: how many waves of a batch the discriminators hear (0: all).
    """
    kept: dict[int, torch.Tensor] = {}  # waves of this step: the generator runs once

    def step_function(phase: str, modules: dict, batch: tuple, step: int) -> tuple | None:
        units, real, speakers = (tensor.to(device) for tensor in batch)
        count, judging, some = len(real), step >= start, judged or len(real)
        if phase == "discriminators":
            if not judging:
                return None
            kept[step] = made = modules["generator"](units, speakers)  # (batch, samples)
            # One pass over both halves: DDP wants a single forward before each backward.
            heard = torch.cat([real[:some], made.detach()[:some]])
            scored = modules["discriminators"](heard)
            return losses.discriminator_loss(scored, len(real[:some])) * count, count, {}
        made = kept.pop(step) if judging else modules["generator"](units, speakers)
        loss = losses.reconstruction_loss(made, real)
        metrics = {"reconstruction": loss.detach()}
        if judging:
            adversarial, matching = _judged_loss(judge, made[:some], real[:some])
            loss = loss + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * matching
            metrics |= {"adversarial": adversarial.detach(), "feature_matching": matching.detach()}
        return loss * count, count, metrics

    return step_function


def _judged_loss(judge: losses.Discriminators, made: torch.Tensor, real: torch.Tensor) -> tuple:
    """(adversarial, feature matching) losses, with gradients for the generator alone."""
    judge.requires_grad_(False)
    try:
        of_real, of_made = judge(real), judge(made)
    finally:
        judge.requires_grad_(True)
    return losses.generator_loss(of_made), losses.feature_matching_loss(of_real, of_made)


@torch.inference_mode()
def speak_sample(generator: UnitGenerator, frames: np.ndarray, work: Path, step: int) -> None:
    """Write `samples/step_000300.wav` and `.png`, its log-mel spectrogram, time left to right."""
    from matplotlib.image import imsave

    units = torch.from_numpy(frames.astype(np.int64))[None].to(generator.dict.weight.device)
    wave = generator(units, units.new_zeros(1))[0].float().cpu().numpy()
    path = work / "samples" / f"step_{step:06d}"
    write_audio(path.with_suffix(".wav"), wave)
    with atomic_path(path.with_suffix(".png")) as temporary:
        imsave(temporary, log_mel(wave).T, format="png", **COLOURS)


def train_durations(
    merged: list[Pair], count: int, settings: VocoderSettings, work: Path, options: TrainingOptions
) -> tuple[DurationPredictor, dict]:
    """Train a duration predictor on merged units (n,) below `count` and durations (n,) in frames.

    The loss is the mean of `DurationPredictor.loss`.  Returns (predictor, summary of the loop).
    Raises UserError for no pairs and for bad ones.
    """
    for index, (units, durations) in enumerate(merged):
        check_range(units, count)
        if len(units) != len(durations) or not len(units):
            found = f"{len(units)} units and {len(durations)} durations"
            raise UserError(f"sequence {index} has {found}: expected one each, at least one")
    if not merged:
        raise UserError("there are no unit sequences: run 01_unit_extraction.ipynb first")
    torch.manual_seed(options.seed)
    predictor = DurationPredictor(count, settings.embedding, settings=settings.durations)
    task = durations_task(predictor, merged, options)
    summary = train(task, settings.duration_optimization, work, options)
    return predictor.eval(), summary


def durations_task(
    predictor: DurationPredictor, merged: Sequence[Pair], options: TrainingOptions
) -> Task:
    """What a duration predictor learns from merged units (n,) and durations (n,) in frames."""

    def batch_at(step: int, rank: int, world_size: int):
        rng = np.random.default_rng((options.seed, step))
        chosen = rng.choice(len(merged), DURATION_BATCH)[rank::world_size]
        units, durations = zip(*(merged[i] for i in chosen), strict=True)
        return *pad_units(units), pad_units(durations)[0]

    def step_function(phase: str, modules: dict, batch: tuple, step: int):
        units, mask, durations = (tensor.to(options.device) for tensor in batch)  # (batch, units)
        predicted, wanted = modules["durations"](units, mask)[mask], durations[mask]
        frames_off = (predictor.expected(predicted.detach()) - wanted).abs().float().mean()
        return predictor.loss(predicted, wanted), mask.sum(), {"frames_off": frames_off}

    return Task({"durations": predictor}, step_function, batch_at)
