"""A picture of the graph of steps: each in the row of its notebook, coloured by its state."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from speechgpt_lib.notebook.figure import new_axes
from speechgpt_lib.pipeline.graph import Planned

STATES = {  # what `plan` says of a step → its colour
    "reused": "#cdebdc",
    "resumed": "#fff3d6",
    "made": "#cfe3f3",
    "remade": "#fbe3b5",
    "imported": "#ecd5e6",
}


def places(planned: Sequence[Planned]) -> dict[str, tuple[int, int]]:
    """Step → (column, row): a row a notebook, and every step to the right of what it needs."""
    rows = {name: row for row, name in enumerate(sorted({step.notebook for step in planned}))}
    needed = {need for step in planned for need in step.needs}
    found: dict[str, tuple[int, int]] = {}
    for step in sorted(planned, key=lambda step: step.step not in needed):  # what none needs: last
        before = [found[need][0] for need in step.needs]
        beside = [column for column, row in found.values() if row == rows[step.notebook]]
        found[step.step] = (max([-1, *before, *beside]) + 1, rows[step.notebook])
    return found


def implied(planned: Sequence[Planned]) -> set[tuple[str, str]]:
    """Needs (step, need) that another need of the same step has already."""
    above: dict[str, set[str]] = {}
    for step in planned:
        above[step.step] = set(step.needs).union(*(above[need] for need in step.needs))
    every = [(step, other) for step in planned for other in step.needs]
    return {(step.step, need) for step, other in every for need in above[other] & {*step.needs}}


def draw_graph(planned: Sequence[Planned]) -> Figure:
    """Boxes for steps in the colour of their state, arrows from needs, pale ones where implied."""
    at, pale = places(planned), implied(planned)
    columns, rows = (max(place[k] for place in at.values()) + 1 for k in (0, 1))
    fig, ax = new_axes(size=(1.4 * columns, 0.7 * rows))
    boxes = {}
    for step in planned:
        box = {"boxstyle": "round,pad=0.4", "edgecolor": "#555555", "facecolor": STATES[step.state]}
        name = step.step.replace("_", "\n")
        text = ax.text(*at[step.step], name, ha="center", va="center", fontsize=9, bbox=box)
        boxes[step.step] = text.get_bbox_patch()
    for step in planned:
        for need in step.needs:
            weak = (step.step, need) in pale
            (x, y), (left, above) = at[step.step], at[need]
            bend = 0.25 if y == above and x - left > 1 else 0  # around what stands between
            look = {"arrowstyle": "-" if weak else "-|>", "alpha": 0.2 if weak else 1.0}
            look |= {"patchA": boxes[need], "patchB": boxes[step.step], "shrinkA": 0, "shrinkB": 0}
            look |= {"color": "#666666", "connectionstyle": f"arc3,rad={bend}"}
            ax.annotate("", (x, y), (left, above), arrowprops=look)
    for number, row in {(step.notebook[:2], at[step.step][1]) for step in planned}:
        ax.text(-0.75, row, number, ha="right", va="center", weight="bold")
    for state in sorted({step.state for step in planned}, key=list(STATES).index):
        ax.plot([], [], "s", color=STATES[state], markeredgecolor="#555555", label=state)
    ax.legend(loc="upper right")
    ax.set(xlim=(-0.8, columns - 0.4), ylim=(rows - 0.5, -0.6))
    ax.axis("off")
    return fig
