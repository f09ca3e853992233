"""Figures of notebook 11: two readings aligned; what more sentences bring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from speechgpt_lib.notebook.figure import DASHED, heat_map, new_axes


def draw_alignment(mine: np.ndarray, other: np.ndarray, path: np.ndarray) -> Figure:
    """Distances between two readings' features (frames, width), and the path (frames of mine,)."""
    a, b = ((x - x.mean(0)) / (x.std(0) + 1e-3) for x in (mine, other))
    costs = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    fig, ax = new_axes(size=(6.5, 3.6))
    heat_map(ax, costs.T, cmap="Greys_r")
    ax.plot(np.arange(len(path)), path, linewidth=2)
    ax.set(xlabel="frame of this voice", ylabel="frame of the known voice")
    ax.set_title("Which frame says what which frame says")
    return fig


def draw_curve(points: Sequence[dict]) -> Figure:
    """Word error rate over the number of sentences, of the voice and of the run's own voices."""
    fig, ax = new_axes(size=(7, 3.4))
    sizes = [point["sentences"] for point in points]
    for key, label in (("voice", "this voice"), ("own", "the run's own voices")):
        found = [point[f"{key}_wer_after"] for point in points]
        value, low, high = np.array([[f[n] for n in ("value", "low", "high")] for f in found]).T
        reach = np.abs([value - low, high - value])
        ax.errorbar(sizes, value, yerr=reach, capsize=3, marker="o", label=label)
    ax.axhline(points[-1]["voice_wer_before"]["value"], label="this voice before", **DASHED)
    ax.set(xlabel="sentences learned from", ylabel="word error rate", ylim=(0, None))
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.legend(fontsize=9)
    return fig
