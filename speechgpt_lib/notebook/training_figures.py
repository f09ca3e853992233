"""Pictures of batches: how rows of different lengths share the tokens that are computed, and how many of those are padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechgpt_lib.language_model.packing import pack

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Layout:
    """Lines of a batch: on each the pieces (number of the row, tokens) from left to right, and how many tokens are computed for it."""

    name: str
    lines: list[tuple[list[tuple[int, int]], int]]

    @property
    def used(self) -> float:
        """Share of what is computed that is a token of a row."""
        return sum(size for pieces, _ in self.lines for _, size in pieces) / sum(
            width for _, width in self.lines
        )


def layouts(lengths: Sequence[int], block: int, together: int = 4) -> list[Layout]:
    """Four ways to lay out rows of `lengths` tokens: padded in batches of `together`, in order and by length; packed; concatenated."""
    in_order, by_length = (
        range(len(lengths)),
        sorted(range(len(lengths)), key=lambda k: -lengths[k]),
    )
    packed = [([(k, lengths[k]) for k in numbers], block) for numbers in pack(lengths, block)]
    return [
        Layout("padded, as they come", _padded(lengths, in_order, together)),
        Layout("padded, like with like", _padded(lengths, by_length, together)),
        Layout(f"packed into blocks of {block}", packed),
        Layout("concatenated and cut", _cut(lengths, block)),
    ]


def _padded(
    lengths: Sequence[int], order: Sequence[int], together: int
) -> list[tuple[list[tuple[int, int]], int]]:
    lines = []
    for start in range(0, len(order), together):
        batch = order[start : start + together]
        lines += [([(k, lengths[k])], max(lengths[j] for j in batch)) for k in batch]
    return lines


def _cut(lengths: Sequence[int], block: int) -> list[tuple[list[tuple[int, int]], int]]:
    lines: list[tuple[list[tuple[int, int]], int]] = [([], 0)]
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
    fig, axes = plt.subplots(1, len(found), figsize=(3.1 * len(found), 3.4), sharex=True)
    for ax, layout in zip(axes, found, strict=True):
        for line, (pieces, width) in enumerate(layout.lines):
            ax.barh(line, width, color="#dddddd", height=0.8)
            left = 0
            for row, size in pieces:
                ax.barh(
                    line,
                    size,
                    left=left,
                    color=colors[row % len(colors)],
                    edgecolor="white",
                    linewidth=0.6,
                    height=0.8,
                )
                left += size
        ax.set(
            title=f"{layout.name}\n{layout.used:.0%} used",
            xlabel="tokens",
            xlim=(0, widest),
            ylim=(len(layout.lines) - 0.4, -0.6),
        )
        ax.grid(False)
        ax.set_yticks([0, len(layout.lines) - 1], ["1", str(len(layout.lines))])
    axes[0].set(ylabel="line of the batch")
    return fig
