"""Pictures of speech and its units: waves, phones, spectrograms, strips of units, durations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from speechgpt_lib.metrics.unit_quality import SILENCE
from speechgpt_lib.metrics.waveform import log_mel
from speechgpt_lib.notebook.figure import COLORS, new_axes
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.units.sequence import expand, merge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME_S = HOP / SAMPLE_RATE
HIGHEST_HZ = 6000
Phones = Sequence[tuple[float, float, str]]  # (start s, end s, label)


def unit_colors(count: int):
    """A colour map with one colour a unit: neighbours in number differ in hue and lightness."""
    from matplotlib.colors import ListedColormap, hsv_to_rgb

    kinds = np.arange(count)
    hsv = [kinds * 0.618 % 1, np.full(count, 0.5), 0.6 + 0.35 * (kinds % 2)]
    return ListedColormap(hsv_to_rgb(np.stack(hsv, axis=1)))


def paint(ax: Axes, units: np.ndarray, count: int, box: tuple | None = None) -> None:
    """Draw units (n,) of `count` kinds as a coloured strip; box: left, right, bottom, top."""
    look = {"aspect": "auto", "interpolation": "nearest", "cmap": unit_colors(count)}
    ax.imshow(np.asarray(units)[None], extent=box, vmin=0, vmax=count - 1, **look)
    ax.grid(False)


def draw_path(lanes: Mapping[str, str | np.ndarray], count: int) -> Figure:
    """Lanes from a question to its answer: waves (float), units of `count` kinds (int), words."""
    heights = [3 if _is_wave(lane) else 1 for lane in lanes.values()]
    longest = max(len(lane) for lane in lanes.values() if _is_wave(lane)) / SAMPLE_RATE
    size, ratios = (9, 0.46 * sum(heights)), {"height_ratios": heights}
    fig, axes = new_axes(len(lanes), 1, size, gridspec_kw=ratios)
    for ax, (name, lane) in zip(axes, lanes.items(), strict=True):
        middle = {"transform": ax.transAxes, "va": "center"}
        if isinstance(lane, str):
            ax.text(0, 0.5, f" {lane} ", backgroundcolor="#fff3d6", **middle)
        elif _is_wave(lane):
            ax.plot(np.arange(len(lane)) / SAMPLE_RATE, lane, linewidth=0.5)
        else:
            paint(ax, lane, count, (0, len(lane) * FRAME_S, 0, 1))
        ax.text(-0.01, 0.5, name, ha="right", weight="bold", **middle)
        ax.axis("off")
        ax.set(xlim=(0, longest))
    return fig


def _is_wave(lane: str | np.ndarray) -> bool:
    return not isinstance(lane, str) and np.issubdtype(lane.dtype, np.floating)


def draw_wave(wave: np.ndarray, phones: Phones = (), seconds: float = 1.5) -> Figure:
    """The first `seconds` of a wave (samples,), with the phones where they are known."""
    fig, ax = new_axes(size=(9, 2.4))
    ax.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.5)
    top = 1.2 * np.abs(wave).max()
    for k, (start, end, label) in enumerate(phones):
        if end < seconds and label:
            ax.axvspan(start, end, color=COLORS[1 + k % 2], alpha=0.15, linewidth=0)
            ax.text((start + end) / 2, top, label, ha="center")
    ax.set(xlim=(0, seconds), ylim=(-top, 1.3 * top), xlabel="seconds", yticks=[])
    return fig


def draw_mask(wave: np.ndarray, mask: np.ndarray) -> Figure:
    """A wave (samples,) whose masked frames (mask: bool (frames,)) are blanked and shaded."""
    hidden = np.repeat(mask, HOP)[: len(wave)]
    wave = wave[: len(hidden)]
    time, top = np.arange(len(wave)) / SAMPLE_RATE, np.abs(wave).max()
    fig, ax = new_axes(size=(9, 1.8))
    ax.plot(time, np.where(hidden, np.nan, wave), linewidth=0.5)
    ax.fill_between(time, -top, top, where=hidden, color=COLORS[3], alpha=0.35, linewidth=0)
    ax.set(xlim=(0, time[-1]), xlabel="seconds", yticks=[])
    return fig


def draw_spaces(spaces: Mapping[str, np.ndarray], labels: np.ndarray, kinds: int = 7) -> Figure:
    """Vectors (frames, width) of each space along their two main directions, by frequent phones."""
    common = [label for label, _ in Counter(labels[labels != ""]).most_common(kinds)]
    fig, axes = new_axes(1, len(spaces), (9, 3.8))
    for ax, (name, vectors) in zip(axes, spaces.items(), strict=True):
        kept = vectors[np.isin(labels, common)]
        directions = np.linalg.svd(kept[:4000] - kept.mean(0), full_matrices=False)[2][:2]
        for label, color in zip(common, COLORS, strict=False):
            points = (vectors[labels == label][:250] - kept.mean(0)) @ directions.T
            ax.scatter(*points.T, s=5, color=color, alpha=0.6, linewidth=0, label=label)
        ax.set(title=name, xticks=[], yticks=[])
    axes[-1].legend(markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def draw_merging(
    wave: np.ndarray, frames: np.ndarray, phones: Phones, count: int, shown: int = 60
) -> Figure:
    """The first `shown` units (frames,), one a frame, joined by lines to the merged ones below."""
    units, durations = merge(frames)
    ends = np.cumsum(durations)
    merged = int((ends <= shown).sum())
    fig, (top, bottom) = new_axes(2, 1, (9, 3.8), sharex=True)
    sound = wave[: shown * HOP]
    top.plot(np.arange(len(sound)) / HOP, sound, linewidth=0.5)
    for start, end, label in phones:
        if end / FRAME_S < shown:
            top.axvline(end / FRAME_S, color="#bbbbbb", linewidth=0.8)
            top.text((start + end) / 2 / FRAME_S, np.abs(sound).max(), label, ha="center")
    paint(bottom, frames[:shown], count, (0, shown, 2, 3))
    paint(bottom, units[:merged], count, (0, merged, 0, 1))
    for k in range(merged):
        middle = ends[k] - durations[k] / 2
        bottom.plot([middle, k + 0.5], [2, 1], color="#bbbbbb", linewidth=0.8)
        bottom.text(k + 0.5, 0.45, units[k], ha="center", va="center", fontsize=6.5)
    top.set(yticks=[])
    bottom.set(xlim=(0, shown), ylim=(0, 3), xlabel="frames of 20 ms")
    bottom.set(yticks=[0.5, 2.5], yticklabels=["merged", "50 a second"])
    return fig


def spectrogram_with_units(
    wave: np.ndarray,
    units: np.ndarray,
    durations: np.ndarray,
    count: int,
    phones: Phones = (),
    seconds: float = 1.6,
) -> Figure:
    """A wave (samples,) as spectrogram; below it its merged units (n,) and durations (frames).

    The first `seconds` of it; `count` is the size of the unit inventory.
    """
    shown = min(seconds, len(wave) / SAMPLE_RATE)
    fig, (top, bottom) = new_axes(2, 1, (9, 3.6), sharex=True, height_ratios=[4, 1])
    loudness = _decibels(np.asarray(wave[: int(shown * SAMPLE_RATE)], dtype=np.float64))
    look = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    top.imshow(loudness.T, extent=(0, shown, 0, HIGHEST_HZ), vmin=-70, vmax=0, **look)
    top.set(ylim=(0, HIGHEST_HZ + 700), ylabel="Hz", yticks=[0, 2000, 4000, 6000])
    top.grid(False)
    middle = {"ha": "center", "va": "center"}
    for start, end, label in phones:
        if end <= shown:
            top.plot([end, end], [0, HIGHEST_HZ + 700], color="#888888", linewidth=0.6)
            top.text((start + end) / 2, HIGHEST_HZ + 350, label, fontsize=9, **middle)
    frames = expand(units, durations)[: int(shown / FRAME_S)]
    paint(bottom, frames, count, (0, len(frames) * FRAME_S, 0, 1))
    ends = np.cumsum(durations) * FRAME_S
    for unit, end, duration in zip(units, ends, durations, strict=True):
        if end <= shown and duration > 1:
            bottom.text(end - duration * FRAME_S / 2, 0.5, unit, fontsize=6, **middle)
    bottom.set(xlim=(0, shown), xlabel="seconds", yticks=[0.5], yticklabels=["units"])
    return fig


def draw_phones_by_unit(seen: np.ndarray, labels: np.ndarray, count: int) -> Figure:
    """How often each frequent phone (a row) was spoken while each unit (a column) was seen."""
    rows = [label for label, _ in Counter(labels).most_common(24)]
    table = np.array([np.bincount(seen[labels == r], minlength=count) for r in rows], dtype=float)
    table /= np.maximum(table.sum(0), 1)
    order = np.lexsort((-table.max(0), table.argmax(0)))
    fig, ax = new_axes(size=(9, 4.2))
    ax.imshow(table[:, order], aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    names = ["(pause)" if row == SILENCE else row for row in rows]
    ax.set(xlabel="units, sorted by their phone", yticks=range(len(rows)), yticklabels=names)
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(False)
    return fig


def draw_grid(grid: Sequence[dict]) -> Figure:
    """Quality of units by layer and number of clusters: rows of the step `unit_grid`."""
    fig, (left, right) = new_axes(1, 2, (9, 3.2))
    for layer in sorted({row["layer"] for row in grid}):
        rows = [row for row in grid if row["layer"] == layer]
        values = {name: [row[name] for row in rows] for name in rows[0]}
        left.plot(values["clusters"], values["pnmi"], marker="o", label=f"layer {layer}")
        right.plot(values["bitrate"], values["speaker_probe"], marker="o")
    right.axhline(grid[0]["speaker_chance"], color="#888888", linestyle="--", linewidth=1)
    ticks = sorted({row["clusters"] for row in grid})
    left.set(xscale="log", xticks=ticks, xticklabels=ticks, xlabel="clusters", title="PNMI ↑")
    left.minorticks_off()
    right.set(xlabel="bits a second", title="Speaker named from units ↓")
    left.legend()
    return fig


def draw_strips(strips: Mapping[str, np.ndarray], count: int, shown: int = 60) -> Figure:
    """The first `shown` merged units of each, one strip below the other."""
    size = (9, 0.55 * len(strips) + 0.3)
    fig, axes = new_axes(len(strips), 1, size, squeeze=False)
    for ax, (name, units) in zip(axes[:, 0], strips.items(), strict=True):
        paint(ax, units[:shown], count)
        ax.set(yticks=[0], yticklabels=[name], xticks=[])
    return fig


def draw_statistics(durations: np.ndarray, share: np.ndarray) -> Figure:
    """How long units last (frames), and the share of each unit, most frequent first."""
    fig, (left, right) = new_axes(1, 2, (9, 2.8))
    weights = np.full(len(durations), 100 / len(durations))
    left.hist(np.minimum(durations, 8), bins=np.arange(0.5, 9.5), weights=weights)
    left.set(xlabel="frames a unit lasts (8 = 8 or more)", title="Most units are short")
    right.bar(np.arange(len(share)), 100 * share, width=1)
    even = {"color": COLORS[1], "linestyle": "--", "linewidth": 1.2}
    right.axhline(100 / len(share), label="if all were equal", **even)
    right.set(xlabel="units, most frequent first", title="All are used, some more")
    for ax in (left, right):
        ax.set(ylabel="% of units")
    right.legend()
    return fig


def draw_mels(sounds: Mapping[str, np.ndarray]) -> Figure:
    """Mel spectrograms of waves (samples,), one below the other on one time axis."""
    fig, axes = new_axes(len(sounds), 1, (7, 4), sharex=True)
    look = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    for ax, (name, sound) in zip(axes, sounds.items(), strict=True):
        mel = log_mel(sound)  # (frames of 10 ms, bands)
        ax.imshow(mel.T, extent=(0, len(mel) / 100, 0, 40), vmin=-4, vmax=3, **look)
        ax.set(title=f"{name}, {len(sound) / SAMPLE_RATE:.2f} s", ylabel="mel band")
        ax.grid(False)
    longest = max(len(sound) for sound in sounds.values()) / SAMPLE_RATE
    axes[-1].set(xlabel="seconds", xlim=(0, longest))
    return fig


def draw_durations(
    clip: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray], shown: int = 60
) -> Figure:
    """Gold and predicted durations (frames): of a clip's first units, and as a table of many."""
    fig, (left, right) = new_axes(1, 2, (9, 3), width_ratios=[2, 1])
    for durations, name in zip(clip, ("gold", "predicted"), strict=True):
        left.step(np.arange(len(durations[:shown])), durations[:shown], where="mid", label=name)
    left.set(xlabel="unit", ylabel="frames", title=f"The clip's first {shown} units")
    left.legend()
    table = np.histogram2d(*held_out, bins=np.arange(0.5, 8.5))[0]  # (gold, predicted)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    right.imshow(share.T, origin="lower", extent=(0.5, 7.5, 0.5, 7.5), vmin=0, vmax=1)
    right.plot([0.5, 7.5], [0.5, 7.5], color="white", linewidth=0.8)
    right.set(xlabel="gold frames", ylabel="predicted", title="Held out")
    right.grid(False)
    return fig


def _decibels(wave: np.ndarray) -> np.ndarray:
    """Loudness (times, frequencies to `HIGHEST_HZ`) in dB below the loudest, every 10 ms."""
    width, hop = SAMPLE_RATE // 40, SAMPLE_RATE // 100
    windows = np.lib.stride_tricks.sliding_window_view(wave, width)[::hop] * np.hanning(width)
    power = np.abs(np.fft.rfft(windows, 512)) ** 2
    power = power[:, : round(HIGHEST_HZ / SAMPLE_RATE * 512)]
    return 10 * np.log10(power / power.max() + 1e-10)
