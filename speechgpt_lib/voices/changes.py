"""A recording → other versions of it: a little faster, higher, noisier, through another microphone.

A person reads few sentences, so each is heard in many versions.
"""

from __future__ import annotations

import numpy as np

from speechgpt_lib.rates import SAMPLE_RATE

RATES = (0.88, 1.14)  # factor on speed and pitch together, as a tape played faster
NOISE = (-4.0, -2.3)  # power of ten of added noise, beside full scale
TILT = 0.3  # of the first-order filter: bright to dull


def changed(wave: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """float32 (n,) at 16 kHz → a version (n / rate,), and its rate."""
    import soxr  # a tenth of a second to load

    rate = float(rng.uniform(*RATES))
    out = soxr.resample(wave, SAMPLE_RATE, SAMPLE_RATE / rate)
    if rng.random() < 0.5:
        out = out + 10 ** rng.uniform(*NOISE) * rng.standard_normal(len(out))
    if rng.random() < 0.5:
        out = np.convolve(out, [1.0, rng.uniform(-TILT, TILT)])[: len(out)]
    return (out * rng.uniform(0.5, 1.2)).astype(np.float32), rate
