"""Pictures of trainings: curves of a metrics log, and how rows fill a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechgpt_lib.language_model.packing import pack
from speechgpt_lib.notebook.figure import COLORS, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = tuple[list[tuple[int, int]], int]  # pieces (row, tokens) from left to right; tokens computed


def draw_log(
    log: Sequence[dict],
    title: str,
    value: str = "loss",
    ylabel: str = "loss",
    scale: float = 1,
    mark: tuple[float, str] | None = None,
    smooth: bool = False,
) -> Figure:
    """One value of a metrics log over the steps.

    mark: a level and what it means, as a dashed line.  smooth: a running mean over a pale curve.
    """
    steps, values = [row["step"] for row in log], [scale * row[value] for row in log]
    fig, ax = new_axes()
    if smooth:
        width = max(1, len(values) // 30)
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        ax.plot(steps, values, linewidth=0.8, color="#bbbbbb", label="one batch")
        ax.plot(steps[width - 1 :], mean, label=f"mean of {width}")
    else:
        ax.plot(steps, values, linewidth=1.2)
    if mark:
        ax.axhline(mark[0], color="#888888", linestyle="--", linewidth=1, label=mark[1])
    ax.set(xlabel="step", ylabel=ylabel, ylim=(0, None), title=title)
    if smooth or mark:
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


@dataclass(frozen=True)
class Layout:
    """Lines of a batch: the pieces of rows on each, and how many tokens are computed for it."""

    name: str
    lines: list[Line]

    @property
    def used(self) -> float:
        """Share of what is computed that is a token of a row, and no padding."""
        filled = sum(size for pieces, _ in self.lines for _, size in pieces)
        return filled / sum(width for _, width in self.lines)


def layouts(lengths: Sequence[int], block: int, together: int = 4) -> list[Layout]:
    """Four ways to lay out rows of `lengths` tokens.

    Padded in batches of `together`, in order and by length; packed; concatenated.
    """
    in_order = range(len(lengths))
    by_length = sorted(in_order, key=lambda k: -lengths[k])
    packed = [([(k, lengths[k]) for k in numbers], block) for numbers in pack(lengths, block)]
    return [
        Layout("padded, as they come", _padded(lengths, in_order, together)),
        Layout("padded, like with like", _padded(lengths, by_length, together)),
        Layout(f"packed into blocks of {block}", packed),
        Layout("concatenated and cut", _cut(lengths, block)),
    ]


def _padded(lengths: Sequence[int], order: Sequence[int], together: int) -> list[Line]:
    batches = [order[start : start + together] for start in range(0, len(order), together)]
    return [([(k, lengths[k])], max(lengths[j] for j in batch)) for batch in batches for k in batch]


def _cut(lengths: Sequence[int], block: int) -> list[Line]:
    lines: list[Line] = [([], 0)]
    for k, length in enumerate(lengths):
        while length:
            pieces, filled = lines[-1]
            if filled == block:
                lines.append(([], 0))
                continue
            taken = min(length, block - filled)
            lines[-1] = ([*pieces, (k, taken)], filled + taken)
            length -= taken
    return lines


def draw_layouts(found: Sequence[Layout]) -> Figure:
    """A panel for each layout: rows in colours, padding in grey, the used share above."""
    import matplotlib.pyplot as plt

    colors = plt.get_cmap("tab20").colors
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
