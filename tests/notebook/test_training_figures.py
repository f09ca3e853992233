"""Layouts of batches: nothing is lost, and what is said to be used is used."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.notebook.training_figures import draw_layouts, layouts


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(1, 6))
def test_every_layout_holds_every_token_once(lengths, together) -> None:
    for layout in layouts(lengths, 64, together):
        held = [0] * len(lengths)
        for pieces, width in layout.lines:
            assert sum(size for _, size in pieces) <= width <= 64
            for row, size in pieces:
                held[row] += size
        assert held == lengths and 0 < layout.used <= 1
    assert layouts(lengths, 64, together)[-1].used == 1, "what is concatenated has no padding"


def test_like_with_like_wastes_less_than_as_they_come() -> None:
    in_order, by_length, packed, _ = layouts([50, 5, 48, 7, 52, 6], 64, 2)
    assert (
        in_order.used == pytest.approx(168 / 300)
        and by_length.used == pytest.approx(168 / 212)
        and packed.used > 0.85
    )


def test_the_picture_says_what_is_used() -> None:
    found = layouts([50, 5, 48, 7], 64, 2)
    fig = draw_layouts(found)
    titles = [
        ax.get_title() or ax.get_title("left") for ax in fig.axes
    ]  # the house style has them on the left
    assert [title.split("\n")[1] for title in titles] == [
        f"{layout.used:.0%} used" for layout in found
    ]
    assert all(
        len(ax.patches) == sum(1 + len(pieces) for pieces, _ in lay.lines)
        for ax, lay in zip(fig.axes, found, strict=True)
    )
    plt.close(fig)
