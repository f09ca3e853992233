"""The vocoder learns to answer in a person's voice: the run's own, trained on for few steps.

Generator and durations start from the run's and learn from the recordings, by the spectrum alone
(`reconstruction_loss`), with the units that the adapted encoder hears in them.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from speechgpt_lib.metrics.waveform import mel_cepstral_distance
from speechgpt_lib.recipes.schema import VoiceSettings
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.sequence import expand
from speechgpt_lib.vocoder.losses import reconstruction_loss
from speechgpt_lib.vocoder.speech import SpeechInMemory
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.vocoder.training import durations_task, pieces_of


def adapt_vocoder(
    vocoder: Vocoder,
    inventory: UnitInventory,
    waves: list[np.ndarray],
    settings: VoiceSettings,
    work: Path,
    options: TrainingOptions,
) -> tuple[Vocoder, dict]:
    """The vocoder of a run, adapted to recordings (samples,) at 16 kHz; the loops' summaries."""
    work.mkdir(parents=True, exist_ok=True)
    heard, hop = [inventory.encode(wave) for wave in waves], vocoder.generator.hop
    pairs = [(expand(*units), wave) for units, wave in zip(heard, waves, strict=True)]
    pairs = [(frames, np.pad(w, (0, max(0, len(frames) * hop - len(w))))) for frames, w in pairs]
    speech = SpeechInMemory(pairs, vocoder.unit_count, hop=hop)
    shape = vocoder.settings.model_copy(update={"batch_size": 4})
    generator = copy.deepcopy(vocoder.generator).float().train().requires_grad_(True)
    durations = copy.deepcopy(vocoder.durations).float().train().requires_grad_(True)

    def sound(phase: str, modules: dict, batch: tuple, step: int):
        units, real, speakers = (tensor.to(options.device) for tensor in batch)
        made = modules["generator"](units, speakers if vocoder.speakers else None)
        return reconstruction_loss(made, real) * len(units), len(units), {}

    parts = {
        "generator": Task({"generator": generator}, sound, pieces_of(speech, shape, options.seed)),
        "durations": durations_task(durations, heard, options),
    }
    told = {n: train(t, settings.speaking, work / n, options) for n, t in parts.items()}
    facts = (vocoder.inventory, vocoder.settings, vocoder.speakers, vocoder.drops_negative)
    return Vocoder(generator.cpu(), durations.cpu(), *facts), told


def likeness(vocoder: Vocoder, inventory: UnitInventory, waves: list[np.ndarray]) -> float:
    """How far recordings are from what a vocoder makes of their units: mean mel-cepstral
    distortion (dB)."""
    made = [vocoder.synthesize(inventory.encode(wave)[0]) for wave in waves]
    found = [mel_cepstral_distance(a, b) for a, b in zip(waves, made, strict=True)]
    return float(np.mean(found))
