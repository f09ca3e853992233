"""Pictures of trainings: curves of a metrics log, and how rows fill a batch."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from speechgpt_lib.language_model.packing import pack
from speechgpt_lib.notebook.figure import COLORS, DASHED, new_axes


def draw_log(
    log: Sequence[dict], title: str, value="loss", ylabel="loss", mark: tuple = (), smooth=False
) -> Figure:
    """One value of a metrics log over the steps.

    mark: a level and what it means, as a dashed line.  smooth: a running mean over a pale curve.
    """
    steps, values = [row["step"] for row in log], [row[value] for row in log]
    fig, ax = new_axes()
    pale = {"color": "#bbbbbb", "label": "one batch"} if smooth else {}
    ax.plot(steps, values, linewidth=0.8 if smooth else 1.2, **pale)
    if smooth:
        width = max(1, len(values) // 30)
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        ax.plot(steps[width - 1 :], mean, label=f"mean of {width}")
    if mark:
        ax.axhline(mark[0], label=mark[1], **DASHED)
    ax.set(xlabel="step", ylabel=ylabel, ylim=(0, None), title=title)
    if smooth or mark:
        ax.legend()
    return fig


def draw_attempts(log: Sequence[dict]) -> Figure:
    """The loss of a training in several attempts, with a line where each goes on: the seconds of
    its log begin anew there."""
    fig, ax = new_axes()
    begins = [k for k in range(1, len(log)) if log[k]["seconds"] < log[k - 1]["seconds"]]
    for number, (a, b) in enumerate(pairwise([0, *begins, len(log)])):
        steps, losses = zip(*((row["step"], row["loss"]) for row in log[a:b]), strict=True)
        ax.plot(steps, losses, color=COLORS[number % len(COLORS)], label=f"start {number + 1}")
        if number:
            ax.axvline(steps[0] - 0.5, **DASHED)
            ax.annotate(" requeued", (steps[0] - 0.5, ax.get_ylim()[1]), va="top")
    ax.set(xlabel="step", ylabel="loss", title="A job that was taken away and came back")
    ax.legend()
    return fig


def draw_vocoder_log(log: Sequence[dict]) -> Figure:
    """The spectral loss of a vocoder, and the losses of generator and discriminators."""
    judged = [row for row in log if "adversarial" in row]
    fig, (left, right) = new_axes(1, 2, (9, 3), width_ratios=[3, 2])
    left.plot([r["step"] for r in log], [r["reconstruction"] for r in log])
    if judged:
        joined = {"color": COLORS[1], "alpha": 0.2, "label": "discriminators join"}
        left.axvspan(judged[0]["step"], log[-1]["step"], linewidth=0, **joined)
        left.legend()
    left.set(xlabel="step", ylabel="spectral loss", title="How far the sound is off")
    for name, label in (("discriminators_loss", "discriminators'"), ("adversarial", "generator's")):
        right.plot([r["step"] for r in judged], [r[name] for r in judged], label=label)
    right.set(xlabel="step", ylabel="adversarial loss", title="Who deceives whom")
    right.legend()
    return fig


class Layout(NamedTuple):
    """Lines of a batch: on each the pieces (row, tokens), and how many tokens are computed."""

    name: str
    lines: list[tuple[list[tuple[int, int]], int]]

    @property
    def used(self) -> float:
        """Share of what is computed that is a token of a row, and no padding."""
        filled = sum(size for pieces, _ in self.lines for _, size in pieces)
        return filled / sum(width for _, width in self.lines)


def layouts(lengths: Sequence[int], block: int, together: int = 4) -> list[Layout]:
    """Rows of `lengths` tokens padded in batches of `together`, in two orders; packed; torn."""

    def padded(order: Sequence[int]) -> list:
        batches = [order[k : k + together] for k in range(0, len(order), together)]
        widths = [max(lengths[k] for k in batch) for batch in batches]
        both = zip(batches, widths, strict=True)
        return [([(k, lengths[k])], width) for batch, width in both for k in batch]

    in_order = range(len(lengths))
    by_length = sorted(in_order, key=lambda k: -lengths[k])
    packed = [([(k, lengths[k]) for k in numbers], block) for numbers in pack(lengths, block)]
    rows = [k for k in in_order for _ in range(lengths[k])]  # of each token
    cut = [rows[start : start + block] for start in range(0, len(rows), block)]
    return [
        Layout("padded, as they come", padded(in_order)),
        Layout("padded, like with like", padded(by_length)),
        Layout(f"packed into blocks of {block}", packed),
        Layout("concatenated and cut", [([*Counter(line).items()], len(line)) for line in cut]),
    ]


def draw_layouts(found: Sequence[Layout]) -> Figure:
    """A panel for each layout: rows in colours, padding in grey, the used share above."""
    colors = colormaps["tab20"].colors
    widest = max(width for layout in found for _, width in layout.lines)
    fig, axes = new_axes(1, len(found), (3.1 * len(found), 3.4), sharex=True)
    edge = {"height": 0.8, "edgecolor": "white", "linewidth": 0.6}
    for ax, layout in zip(axes, found, strict=True):
        for line, (pieces, width) in enumerate(layout.lines):
            ax.barh(line, width, color="#dddddd", height=0.8)
            left = 0
            for row, size in pieces:
                ax.barh(line, size, left=left, color=colors[row % len(colors)], **edge)
                left += size
        last = len(layout.lines)
        ax.set(title=f"{layout.name}\n{layout.used:.0%} used", xlabel="tokens", xlim=(0, widest))
        ax.set(ylim=(last - 0.4, -0.6), yticks=[0, last - 1], yticklabels=["1", str(last)])
        ax.grid(False)
    axes[0].set(ylabel="line of the batch")
    return fig
