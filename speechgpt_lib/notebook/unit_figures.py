"""Pictures of units: a spectrogram over its phones and a strip of units, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speechgpt_lib.units.sequence import expand

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME_S = 0.02


def unit_colors(count: int):
    """A colour map with one colour a unit: neighbours in number get colours far apart that differ in lightness too."""
    from matplotlib.colors import ListedColormap, hsv_to_rgb

    kinds = np.arange(count)
    return ListedColormap(hsv_to_rgb(np.stack([kinds * 0.618 % 1, np.full(count, 0.5), 0.6 + 0.35 * (kinds % 2)], axis=1)))


def spectrogram_with_units(
    wave: np.ndarray,
    units: np.ndarray,
    durations: np.ndarray,
    count: int,
    phones: Sequence[tuple[float, float, str]] = (),
    seconds: float = 2.0,
    sample_rate: int = 16_000,
) -> Figure:
    """The first `seconds` of a wave (samples,) as spectrogram; below it its merged units (n,) as long as they last in frames of 20 ms.

    `phones` are (start s, end s, label); `count` is the size of the unit inventory.
    """
    import matplotlib.pyplot as plt

    shown = min(seconds, len(wave) / sample_rate)
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True, height_ratios=[4, 1])
    samples = np.asarray(wave[: int(shown * sample_rate)], dtype=np.float64)
    top.specgram(samples + 1e-6, NFFT=400, Fs=sample_rate, noverlap=320, vmin=-120, vmax=-30)
    top.set(ylim=(0, 6000), ylabel="Hz", yticks=[0, 2000, 4000, 6000])
    for start, end, label in phones:
        if end <= shown:
            top.axvline(end, color="white", linewidth=0.6, alpha=0.7)
            top.text((start + end) / 2, 5600, label, color="white", ha="center", va="center", fontsize=9)
    frames = expand(units, durations)[: int(shown / FRAME_S)]
    extent = (0, len(frames) * FRAME_S, 0, 1)
    bottom.imshow(frames[None], extent=extent, aspect="auto", cmap=unit_colors(count), vmin=0, vmax=count - 1, interpolation="nearest")
    ends = np.cumsum(durations) * FRAME_S
    for unit, end, duration in zip(units, ends, durations, strict=True):
        if end <= shown and duration > 1:
            bottom.text(end - duration * FRAME_S / 2, 0.5, unit, ha="center", va="center", fontsize=6)
    bottom.set(xlim=(0, shown), xlabel="seconds", yticks=[0.5], yticklabels=["units"])
    for ax in (top, bottom):
        ax.grid(False)
    return fig
