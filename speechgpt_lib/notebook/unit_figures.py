"""Pictures of units: a spectrogram over its phones and a strip of units, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speechgpt_lib.units.sequence import expand

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME_S = 0.02
HIGHEST_HZ = 6000


def unit_colors(count: int):
    """A colour map with one colour a unit: neighbours in number get colours far apart that differ in lightness too."""
    from matplotlib.colors import ListedColormap, hsv_to_rgb

    kinds = np.arange(count)
    return ListedColormap(
        hsv_to_rgb(
            np.stack([kinds * 0.618 % 1, np.full(count, 0.5), 0.6 + 0.35 * (kinds % 2)], axis=1)
        )
    )


def spectrogram_with_units(
    wave: np.ndarray,
    units: np.ndarray,
    durations: np.ndarray,
    count: int,
    phones: Sequence[tuple[float, float, str]] = (),
    seconds: float = 1.6,
    sample_rate: int = 16_000,
) -> Figure:
    """The first `seconds` of a wave (samples,) as spectrogram; below it its merged units (n,) as long as they last in frames of 20 ms.

    `phones` are (start s, end s, label); `count` is the size of the unit inventory.
    """
    import matplotlib.pyplot as plt

    shown = min(seconds, len(wave) / sample_rate)
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True, height_ratios=[4, 1])
    loudness = _decibels(
        np.asarray(wave[: int(shown * sample_rate)], dtype=np.float64), sample_rate
    )
    top.imshow(
        loudness.T,
        extent=(0, shown, 0, HIGHEST_HZ),
        origin="lower",
        aspect="auto",
        vmin=-70,
        vmax=0,
        interpolation="nearest",
    )
    top.set(ylim=(0, HIGHEST_HZ + 700), ylabel="Hz", yticks=[0, 2000, 4000, 6000])
    for start, end, label in phones:
        if end <= shown:
            top.plot([end, end], [0, HIGHEST_HZ + 700], color="#888888", linewidth=0.6)
            top.text(
                (start + end) / 2, HIGHEST_HZ + 350, label, ha="center", va="center", fontsize=9
            )
    frames = expand(units, durations)[: int(shown / FRAME_S)]
    extent = (0, len(frames) * FRAME_S, 0, 1)
    bottom.imshow(
        frames[None],
        extent=extent,
        aspect="auto",
        cmap=unit_colors(count),
        vmin=0,
        vmax=count - 1,
        interpolation="nearest",
    )
    ends = np.cumsum(durations) * FRAME_S
    for unit, end, duration in zip(units, ends, durations, strict=True):
        if end <= shown and duration > 1:
            bottom.text(
                end - duration * FRAME_S / 2, 0.5, unit, ha="center", va="center", fontsize=6
            )
    bottom.set(xlim=(0, shown), xlabel="seconds", yticks=[0.5], yticklabels=["units"])
    for ax in (top, bottom):
        ax.grid(False)
    return fig


def _decibels(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Loudness (times, frequencies up to `HIGHEST_HZ`) in dB below the loudest, windows of 25 ms every 10 ms."""
    width, hop = sample_rate // 40, sample_rate // 100
    windows = np.lib.stride_tricks.sliding_window_view(wave, width)[::hop] * np.hanning(width)
    power = np.abs(np.fft.rfft(windows, 512)) ** 2
    power = power[:, : round(HIGHEST_HZ / sample_rate * 512)]
    return 10 * np.log10(power / power.max() + 1e-10)
