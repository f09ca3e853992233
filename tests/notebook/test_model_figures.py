"""Pictures of the language model show the numbers that they are given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from speechgpt_lib.notebook import model_figures as draw


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_rows_of_parts_are_as_long_as_their_parts() -> None:
    rows = {"first": [("[tq]", 3), ("[ta]", 2)], "second": [("[ta]", 4)]}
    (ax,) = draw.draw_rows(rows, "tokens").axes
    assert [bar.get_width() for bar in ax.patches] == [3, 2, 4]
    assert ax.patches[1].get_facecolor() == ax.patches[2].get_facecolor()


def test_bars_of_memory_stand_on_each_other() -> None:
    needs = {2: {"weights": 10.0, "activations": 3.0}, 8: {"weights": 4.0, "activations": 3.0}}
    ax, _ = draw.draw_memory({"small": needs, "large": needs}, limit=80).axes
    bars = [(bar.get_y(), bar.get_height()) for bar in ax.patches]
    assert bars == [(0, 10), (0, 4), (10, 3), (4, 3)]


def test_kinds_have_a_bar_each_in_text_and_in_speech() -> None:
    figure = {"value": 0.5, "low": 0.25, "high": 1.0}
    kinds = {kind: {"text": figure, "speech": figure} for kind in ("sum", "place")}
    (ax,) = draw.draw_kinds(kinds, 0.2).axes
    assert [bar.get_height() for bar in ax.patches] == [0.5] * 4


def test_logits_embeddings_guesses_and_attention_are_drawn_whole() -> None:
    torch.manual_seed(0)
    before = torch.randn(20)
    left, right = draw.draw_logits(before, torch.cat([before, torch.randn(5)])).axes
    assert np.array_equal(*left.lines[0].get_data()) and len(right.patches) == 2 * 59
    (ax,) = draw.draw_embeddings(torch.randn(30, 8), old=22).axes
    assert [len(line.get_xdata()) for line in ax.lines] == [22, 8]
    (ax,) = draw.draw_guesses(torch.rand(6, 4), [0, 1, 2, 3, 2, 1]).axes
    assert ax.images[0].get_array().shape == (4, 6)
    fig = draw.draw_attention({"a": torch.eye(3), "b": torch.eye(3)}, ["x", "y", "z"])
    assert [ax.get_xticklabels()[2].get_text() for ax in fig.axes] == ["z", "z"]


def test_a_matrix_of_rank_two_has_two_singular_values() -> None:
    matrix = torch.randn(8, 2) @ torch.randn(2, 6)
    (ax,) = draw.draw_singular_values({"change": matrix}, rank=2).axes
    values = ax.lines[0].get_ydata()
    assert len(values) == 6 and (np.asarray(values[2:]) < 1e-4).all()


def test_markers_have_their_cosines_and_two_bars_each() -> None:
    rows = {"frozen": torch.ones(2, 3), "trained": torch.eye(2, 3)}
    chances = {"a": [0.1, 0.2], "b": [1, 1]}
    before, after, bars = draw.draw_markers(["[tq]", "[ta]"], rows, chances).axes
    assert torch.equal(torch.as_tensor(after.images[0].get_array()), torch.eye(2))
    assert [text.get_text() for text in before.texts] == ["1.00"] * 4
    assert [bar.get_height() for bar in bars.patches] == [0.1, 0.2, 1, 1]
