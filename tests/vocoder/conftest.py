"""A tiny vocoder and tiny data: two stages, eight channels, tones instead of speech."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.recipes.schema import Optimization, VocoderSettings
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.synthesis import Vocoder

UNITS = 6


@pytest.fixture
def tiny() -> VocoderSettings:
    fast = {"warmup": 1, "precision": "no", "log_every": 1, "save_every_s": 1e-9}
    optimization = Optimization(steps=4, learning_rate=3e-3, betas=(0.8, 0.99), clip=5.0, **fast)
    return VocoderSettings(
        embedding=8,
        channels=8,
        upsample_rates=(20, 16),
        upsample_kernels=(40, 32),
        resblock_kernels=(3, 5),
        resblock_dilations=((1,), (3,)),
        discriminator_channels=1,
        segment_frames=8,
        batch_size=2,
        adversarial_from=0.5,
        optimization=optimization,
        duration_optimization=optimization,
    )


@pytest.fixture
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Unit u sounds as a tone of 200 · (u + 1) Hz.

    The wave goes on a little after the last frame, as HuBERT's does.
    """
    rng = np.random.default_rng(0)
    made = []
    for _ in range(5):
        units = np.repeat(rng.integers(0, UNITS, 8), rng.integers(1, 4, 8))
        hertz = np.repeat(200.0 * (units + 1), HOP)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)
        made.append((units, np.pad(wave, (0, 80)).astype(np.float32)))
    return made


@pytest.fixture
def vocoder(tiny: VocoderSettings) -> Vocoder:
    torch.manual_seed(0)
    generator = UnitGenerator(UNITS, tiny)
    return Vocoder(generator, DurationPredictor(UNITS, tiny.embedding), "inventory-a", tiny)
