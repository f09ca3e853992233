"""A training in a notebook: its loss drawn while it runs, in one process or in several."""

import html
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from IPython.utils.capture import capture_output

from speechgpt_lib.notebook.figure import new_axes, show_figure
from speechgpt_lib.notebook.progress import describe
from speechgpt_lib.pipeline.launch import train_step
from speechgpt_lib.runs.processes import interrupts_later
from speechgpt_lib.runs.run import Run, Step


class LossCurve:
    """Told the rows of a metrics log, draws the loss in the same place, once a second at most."""

    def __init__(self, title: str, steps: int):
        self.title, self.steps, self.rows, self.place = title, steps, [], uuid.uuid4().hex
        self.drawn, self.next = 0, 0.0  # rows in the picture; when the next one is due

    def __call__(self, row: dict) -> None:
        self.rows.append(row)
        if time.monotonic() >= self.next:
            self.draw()

    @interrupts_later()
    def draw(self) -> None:
        """Draw what has not been drawn yet."""
        if self.drawn == len(self.rows):
            return
        started = time.monotonic()
        fig, ax = new_axes(size=(7, 2.6))
        ax.plot([r["step"] for r in self.rows], [r["loss"] for r in self.rows], linewidth=1.2)
        ax.set(xlim=(0, self.steps), ylim=(0, None), xlabel="step", ylabel="loss", title=self.title)
        last = self.rows[-1]
        alt = f"The loss over {last['step']} of {self.steps} steps, now {last['loss']:.3f}."
        place = {"display_id": self.place, "update": self.drawn > 0}
        show_figure(fig, alt, describe(last, self.steps), **place)
        self.drawn, now = len(self.rows), time.monotonic()
        self.next = now + max(1.0, (now - started) * 20)  # drawing may take 5 % of the time


def say_every(steps: int, *names: str) -> Callable[[dict], None]:
    """Told the rows of a metrics log, prints the values `names` of every `steps`-th step."""

    def tell(row: dict) -> None:
        if row["step"] % steps == 0:
            values = [f"{name.replace('_', ' ')} {row[name]:.2f}" for name in names if name in row]
            print(f"step {row['step']}: {', '.join(values)}")

    return tell


def capture(show: Callable, *arguments: object) -> str:
    """What is shown and printed, as HTML for a widget: `interact` can stall a headless run."""
    with capture_output() as shown:
        show(*arguments)
    printed = [f"<br>{html.escape(line)}" for line in shown.stdout.splitlines()]
    return "".join([output.data["text/html"] for output in shown.outputs] + printed)


def train_live(run: Run, name: str, processes: int = 1, force: bool = False) -> Step:
    """Make the trained step `name` ("stage1"), draw its loss and print the command that does it.

    Interrupted, all processes save a checkpoint; the same cell, or that command, goes on from it.
    """
    options = f" --processes {processes}" * (processes > 1) + " --force" * force
    where = os.path.relpath(run.path, Path.cwd().parent)
    print(f"in a terminal: speechgpt train {name} --run {where}{options}")
    settings = run.recipe.language_model if name == "text_model" else getattr(run.recipe, name)
    title = f"{name}, {processes} process{'es' * (processes > 1)}"
    curve = LossCurve(title, settings.optimization.steps)
    try:
        return train_step(run, name, processes, force, curve)
    finally:
        curve.draw()
