"""The encoder learns to hear a voice: its frames are to give the units that others' would.

The synthesiser (or the run itself) says the sentences that the person read; frames of both are
aligned, and the units of its frames are the targets of the person's.  The rest is as in
units/hearing.py: the centroids stay, and the run's own voices stand in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from speechgpt_lib.recipes.schema import VoiceSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.hearing import Crops, Heard, Pair, teach
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.voices.alignment import align
from speechgpt_lib.voices.changes import changed


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
    model = Heard(inventory, float(distance))
    kept = [(wave, kmeans.assign(inventory.features(wave))) for wave in own]
    heard, summary, seconds, all_steps = inventory, {}, 0.0, settings.listening.steps
    first = max(1, all_steps // 3)  # then the alignment is better
    for number, steps in enumerate((first, max(1, all_steps - first))):
        paths = align([heard.features(wave) for wave in recordings], references)
        targets = [units[path] for units, path in zip(wanted, paths, strict=True)]
        new = list(zip(recordings, targets, strict=True))
        parts = settings.crops, settings.crop_seconds, options.seed + number
        batch_at = Crops(inventory, drawing(new, kept, settings.voice_share), *parts)
        optimization = settings.listening.model_copy(update={"steps": steps})
        summary = teach(model, batch_at, optimization, work / f"listening_{number}", options)
        seconds += summary.get("seconds", 0.0)
        heard = model.whole(inventory)
    return heard, summary | {"seconds": round(seconds, 1)}


def drawing(new: list[Pair], kept: list[Pair], share: float) -> Callable:
    """What draws a pair: with the probability `share` a recording, changed at random, or what the
    run's own voices say."""

    def draw(rng: np.random.Generator) -> Pair:
        if rng.random() >= share and kept:
            return kept[rng.integers(len(kept))]
        wave, units = new[rng.integers(len(new))]
        wave, rate = changed(wave, rng)
        frame = np.arange(int(len(units) / rate)) * rate
        return wave, units[np.minimum(np.rint(frame).astype(int), len(units) - 1)]

    return draw
