"""Pictures of speech and its units: waves, phones, spectrograms, strips of units, durations."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, hsv_to_rgb
from matplotlib.figure import Figure

from speechgpt_lib.metrics.unit_quality import SILENCE
from speechgpt_lib.metrics.waveform import log_mel
from speechgpt_lib.notebook.figure import COLORS, DASHED, heat_map, new_axes
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.units.sequence import expand, merge

HIGHEST_HZ = 6000
SHOWN = 60  # units of a clip, of which a page has room for the first ones only
Phones = Sequence[tuple[float, float, str]]  # (start s, end s, label)


def unit_colors(count: int):
    """A colour map with one colour a unit: neighbours in number differ in hue and lightness."""
    kinds = np.arange(count)
    hsv = [kinds * 0.618 % 1, np.full(count, 0.5), 0.6 + 0.35 * (kinds % 2)]
    return ListedColormap(hsv_to_rgb(np.stack(hsv, axis=1)))


def paint(ax: Axes, units: np.ndarray, count: int, box: tuple | None = None) -> None:
    """Draw units (n,) of `count` kinds as a coloured strip; box: left, right, bottom, top."""
    look = {"vmin": 0, "vmax": count - 1, "cmap": unit_colors(count)}
    heat_map(ax, np.asarray(units)[None], extent=box, **look)


def draw_path(lanes: Mapping[str, str | np.ndarray], count: int, hop: int = HOP) -> Figure:
    """Lanes from a question to its answer: waves (float), units of `count` kinds (int), words."""
    waves = {k for k, lane in lanes.items() if not isinstance(lane, str) and lane.dtype.kind == "f"}
    longest = max(len(lanes[name]) for name in waves) / SAMPLE_RATE
    heights = [3 if name in waves else 1 for name in lanes]
    fig, axes = new_axes(len(lanes), 1, (9, 0.46 * sum(heights)), height_ratios=heights)
    for ax, (name, lane) in zip(axes, lanes.items(), strict=True):
        middle = {"transform": ax.transAxes, "va": "center"}
        if isinstance(lane, str):
            ax.text(0, 0.5, f" {lane} ", backgroundcolor="#fff3d6", **middle)
        elif name in waves:
            ax.plot(np.arange(len(lane)) / SAMPLE_RATE, lane, linewidth=0.5)
        else:
            paint(ax, lane, count, (0, len(lane) * hop / SAMPLE_RATE, 0, 1))
        ax.text(-0.01, 0.5, name, ha="right", weight="bold", **middle)
        ax.axis("off")
        ax.set(xlim=(0, longest))
    return fig


def draw_wave(wave: np.ndarray, phones: Phones = ()) -> Figure:
    """The first 1.5 s of a wave (samples,), with the phones where they are known."""
    fig, ax = new_axes(size=(9, 2.4))
    ax.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.5)
    top = 1.2 * np.abs(wave).max()
    for k, (start, end, label) in enumerate(phones):
        if end < 1.5 and label:
            ax.axvspan(start, end, color=COLORS[1 + k % 2], alpha=0.15, linewidth=0)
            ax.text((start + end) / 2, top, label, ha="center")
    ax.set(xlim=(0, 1.5), ylim=(-top, 1.3 * top), xlabel="seconds", yticks=[])
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


def draw_spaces(spaces: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Vectors (frames, width) of each space along their two main directions, by frequent phones."""
    common = [label for label, _ in Counter(labels[labels != ""]).most_common(7)]
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
    wave: np.ndarray, frames: np.ndarray, phones: Phones, count: int, hop: int = HOP
) -> Figure:
    """The first units (frames,), one a frame, joined by lines to the merged ones below."""
    (units, durations), frame_s = merge(frames), hop / SAMPLE_RATE
    ends = np.cumsum(durations)
    merged = int((ends <= SHOWN).sum())
    fig, (top, bottom) = new_axes(2, 1, (9, 3.8), sharex=True)
    sound = wave[: SHOWN * hop]
    top.plot(np.arange(len(sound)) / hop, sound, linewidth=0.5)
    top.set(yticks=[])
    for start, end, label in phones:
        if end / frame_s < SHOWN:
            top.axvline(end / frame_s, color="#bbbbbb", linewidth=0.8)
            top.text((start + end) / 2 / frame_s, np.abs(sound).max(), label, ha="center")
    paint(bottom, frames[:SHOWN], count, (0, SHOWN, 2, 3))
    paint(bottom, units[:merged], count, (0, merged, 0, 1))
    for k in range(merged):
        bottom.plot([ends[k] - durations[k] / 2, k + 0.5], [2, 1], color="#bbbbbb", linewidth=0.8)
        bottom.text(k + 0.5, 0.45, units[k], ha="center", va="center", fontsize=6.5)
    bottom.set(xlim=(0, SHOWN), ylim=(0, 3), xlabel=f"frames of {1000 * frame_s:g} ms")
    bottom.set(yticks=[0.5, 2.5], yticklabels=["merged", f"{1 / frame_s:g} a second"])
    return fig


def spectrogram_with_units(
    wave: np.ndarray,
    units: np.ndarray,
    durations: np.ndarray,
    count: int,
    phones: Phones = (),
    hop: int = HOP,
) -> Figure:
    """The first 1.6 s of a wave (samples,), with its merged units (n,) and durations (frames)."""
    from scipy.signal import spectrogram  # no other figure needs it

    shown, frame_s = min(1.6, len(wave) / SAMPLE_RATE), hop / SAMPLE_RATE
    fig, (top, bottom) = new_axes(2, 1, (9, 3.6), sharex=True, height_ratios=[4, 1])
    sound = wave[: int(shown * SAMPLE_RATE)].astype(np.float64)  # below: 25 ms, every 10 ms
    hertz, _, power = spectrogram(sound, SAMPLE_RATE, np.hanning(400), 400, 240, 512, detrend=False)
    power = power[hertz < HIGHEST_HZ]
    decibels = 10 * np.log10(power / power.max() + 1e-10)  # below the loudest
    heat_map(top, decibels, extent=(0, shown, 0, HIGHEST_HZ), vmin=-70, vmax=0)
    top.set(ylim=(0, HIGHEST_HZ + 700), ylabel="Hz", yticks=[0, 2000, 4000, 6000])
    middle = {"ha": "center", "va": "center"}
    for start, end, label in phones:
        if end <= shown:
            top.plot([end, end], [0, HIGHEST_HZ + 700], color="#888888", linewidth=0.6)
            top.text((start + end) / 2, HIGHEST_HZ + 350, label, fontsize=9, **middle)
    frames = expand(units, durations)[: int(shown / frame_s)]
    paint(bottom, frames, count, (0, len(frames) * frame_s, 0, 1))
    ends = np.cumsum(durations) * frame_s
    for unit, end, duration in zip(units, ends, durations, strict=True):
        if end <= shown and duration > 1:
            bottom.text(end - duration * frame_s / 2, 0.5, unit, fontsize=6, **middle)
    bottom.set(xlim=(0, shown), xlabel="seconds", yticks=[0.5], yticklabels=["units"])
    return fig


def draw_phones_by_unit(seen: np.ndarray, labels: np.ndarray, count: int) -> Figure:
    """How often each frequent phone (a row) was spoken while each unit (a column) was seen."""
    rows = [label for label, _ in Counter(labels).most_common(24)]
    table = np.array([np.bincount(seen[labels == r], minlength=count) for r in rows], dtype=float)
    table /= np.maximum(table.sum(0), 1)
    order = np.lexsort((-table.max(0), table.argmax(0)))
    fig, ax = new_axes(size=(9, 4.2))
    heat_map(ax, table[:, order], origin="upper", vmin=0, vmax=1)
    names = ["(pause)" if row == SILENCE else row for row in rows]
    ax.set(xlabel="units, sorted by their phone", yticks=range(len(rows)), yticklabels=names)
    ax.tick_params(axis="y", labelsize=8)
    return fig


def draw_grid(grid: Sequence[dict]) -> Figure:
    """Quality of units by layer and number of clusters: rows of the step `unit_grid`."""
    fig, (left, right) = new_axes(1, 2, (9, 3.2))
    for layer in sorted({row["layer"] for row in grid}):
        rows = [row for row in grid if row["layer"] == layer]
        values = {name: [row[name] for row in rows] for name in rows[0]}
        left.plot(values["clusters"], values["pnmi"], marker="o", label=f"layer {layer}")
        right.plot(values["bitrate"], values["speaker_probe"], marker="o")
    right.axhline(grid[0]["speaker_chance"], **DASHED)
    ticks = sorted({row["clusters"] for row in grid})
    left.set(xscale="log", xticks=ticks, xticklabels=ticks, xlabel="clusters", title="PNMI ↑")
    left.minorticks_off()
    left.legend()
    right.set(xlabel="bits a second", title="Speaker named from units ↓")
    return fig


def draw_strips(strips: Mapping[str, np.ndarray], count: int) -> Figure:
    """The first merged units of each, one strip below the other."""
    fig, axes = new_axes(len(strips), 1, (9, 0.55 * len(strips) + 0.3), squeeze=False)
    for ax, (name, units) in zip(axes[:, 0], strips.items(), strict=True):
        paint(ax, units[:SHOWN], count)
        ax.set(yticks=[0], yticklabels=[name], xticks=[])
    return fig


def draw_statistics(durations: np.ndarray, share: np.ndarray) -> Figure:
    """How long units last (frames), and the share of each unit, most frequent first."""
    fig, (left, right) = new_axes(1, 2, (9, 2.8))
    weights = np.full(len(durations), 100 / len(durations))
    left.hist(np.minimum(durations, 8), bins=np.arange(0.5, 9.5), weights=weights)
    left.set(xlabel="frames a unit lasts (8 = 8 or more)", title="Most units are short")
    right.bar(np.arange(len(share)), 100 * share, width=1)
    right.axhline(100 / len(share), label="if all were equal", **DASHED | {"color": COLORS[1]})
    right.set(xlabel="units, most frequent first", title="All are used, some more")
    right.legend()
    for ax in (left, right):
        ax.set(ylabel="% of units")
    return fig


def draw_mels(sounds: Mapping[str, np.ndarray]) -> Figure:
    """Mel spectrograms of waves (samples,), one below the other on one time axis."""
    fig, axes = new_axes(len(sounds), 1, (7, 4), sharex=True)
    for ax, (name, sound) in zip(axes, sounds.items(), strict=True):
        mel = log_mel(sound)  # (frames of 10 ms, bands)
        heat_map(ax, mel.T, extent=(0, len(mel) / 100, 0, 40), vmin=-4, vmax=3)
        ax.set(title=f"{name}, {len(sound) / SAMPLE_RATE:.2f} s", ylabel="mel band")
    longest = max(len(sound) for sound in sounds.values()) / SAMPLE_RATE
    axes[-1].set(xlabel="seconds", xlim=(0, longest))
    return fig


def draw_durations(clip: tuple, held_out: tuple) -> Figure:
    """Gold and predicted durations (frames): of a clip's first units, and as a table of many."""
    fig, (left, right) = new_axes(1, 2, (9, 3), width_ratios=[2, 1])
    for durations, name in zip(clip, ("gold", "predicted"), strict=True):
        left.step(np.arange(len(durations[:SHOWN])), durations[:SHOWN], where="mid", label=name)
    left.set(xlabel="unit", ylabel="frames", title=f"The clip's first {SHOWN} units")
    left.legend()
    table = np.histogram2d(*held_out, bins=np.arange(0.5, 8.5))[0]  # (gold, predicted)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    heat_map(right, share.T, aspect="equal", extent=(0.5, 7.5, 0.5, 7.5), vmin=0, vmax=1)
    right.plot([0.5, 7.5], [0.5, 7.5], color="white", linewidth=0.8)
    right.set(xlabel="gold frames", ylabel="predicted", title="Held out")
    return fig
