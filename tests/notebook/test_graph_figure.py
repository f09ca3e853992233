"""The picture of the graph: every step has a place of its own, to the right of what it needs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from speechgpt_lib.notebook.graph_figure import STATES, draw_graph, implied, places
from speechgpt_lib.pipeline.graph import plan
from speechgpt_lib.recipes.loading import BUILT_IN, load_recipe
from speechgpt_lib.runs.run import Run


@pytest.fixture(params=BUILT_IN)
def planned(request, tmp_path):
    return plan(Run(tmp_path, load_recipe(request.param)))


def test_every_step_is_right_of_what_it_needs_in_the_row_of_its_notebook(planned) -> None:
    at = places(planned)
    assert len(set(at.values())) == len(at) == len(planned)
    for step in planned:
        assert all(at[need][0] < at[step.step][0] for need in step.needs)
        same = [other.step for other in planned if other.notebook == step.notebook]
        assert {at[name][1] for name in same} == {at[step.step][1]}


def test_needs_that_follow_from_others_are_pale(tmp_path) -> None:
    pale = implied(plan(Run(tmp_path, load_recipe("lab"))))
    assert {("stage3", "units"), ("units", "corpus"), ("evaluation", "stage2")} <= pale
    assert not {("stage2", "stage1"), ("stage2", "cross_modal_set"), ("units", "inventory")} & pale


def test_boxes_have_the_colour_of_what_becomes_of_them(planned) -> None:
    fig = draw_graph(planned)
    (ax,) = fig.axes
    boxes = {text.get_text(): text.get_bbox_patch() for text in ax.texts if text.get_bbox_patch()}
    for step in planned:
        color = boxes[step.step.replace("_", "\n")].get_facecolor()
        assert plt.matplotlib.colors.to_hex(color) == STATES[step.state]
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert set(shown) == {step.state for step in planned}
    plt.close(fig)
