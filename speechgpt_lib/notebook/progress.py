"""What `speechgpt run` says: a line for each notebook and step, live where it is under way."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TimeElapsedColumn

LARGEST_COPY = 1_500_000  # bytes; a heavier notebook opens slowly and can't be shown on GitHub


class Reporter:
    """Says what is reused, resumed and executed; one display for all that is under way."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        columns = "{task.description}", BarColumn(20), TimeElapsedColumn(), "{task.fields[line]}"
        options = {"transient": True, "disable": not self.console.is_terminal}
        self.live = Progress(*columns, console=self.console, **options)

    def say(self, line: str) -> None:
        """A line of its own."""
        self.console.print(escape(line))

    def tell(self, name: str, what: str, more: str = "") -> None:
        """A line on a notebook."""
        self.console.print(f"{name:36} {what:10} {escape(more)}".rstrip())

    def reused(self, name: str, state: dict) -> None:
        """A notebook whose executed copy still holds."""
        made = f"made {state['finished'][:16]} UTC in {clock(state['wall_seconds'])}"
        self.tell(name, "reused", made)

    def executed(self, name: str, state: dict, copy: Path) -> None:
        """A notebook that has come to its end."""
        peak = f"peak {state['peak_memory_mb']:.0f} MB"
        self.tell(name, "done", f"in {clock(state['wall_seconds'])}, {peak}")
        if (size := copy.stat().st_size) > LARGEST_COPY:
            limit = f"{LARGEST_COPY / 1e6:.1f} MB is the limit"
            self.tell(name, "large", f"its copy is {size / 1e6:.1f} MB; {limit}")

    def summary(self, results: list) -> None:
        """The last line of a run."""
        made = [result for result in results if not result.reused]
        took = f" in {clock(sum(result.wall_seconds for result in made))}" if made else ""
        counts = f"{len(results) - len(made)} reused, {len(made)} executed"
        self.console.print(f"{len(results)} notebooks: {counts}{took}")

    @contextlib.contextmanager
    def executing(self, name: str, resumed: bool) -> Iterator[tuple[Callable, Callable]]:
        """Give two functions: one is told each cell (number, cells, id), the other each line."""
        self.tell(name, "resuming" if resumed else "executing")
        with self._task(name) as show:

            def on_cell(number: int, cells: int, cell_id: str) -> None:
                place = {"completed": number, "total": cells}
                show(cell_id, description=f"{name} {number}/{cells}", **place)

            yield on_cell, show

    @contextlib.contextmanager
    def making(self, step: str) -> Iterator[Callable[[str], None]]:
        """Give a function that is told each line of a step: progress is live, the rest printed."""
        with self._task(step) as show:

            def on_line(line: str) -> None:
                show(line.strip())
                if not line.startswith(" "):
                    self.say(f"  {line}")

            yield on_line

    @contextlib.contextmanager
    def _task(self, name: str) -> Iterator[Callable]:
        """A place in the display, which is there as long as anything is; gives what shows there."""
        self.live.start()
        task = self.live.add_task(name, total=None, line="")
        try:
            yield lambda line, **more: self.live.update(task, line=escape(line[:80]), **more)
        finally:
            self.live.remove_task(task)
            if not self.live.tasks:
                self.live.stop()


def clock(seconds: float) -> str:
    """Seconds as people say them: 9 s, 1:05 min, 2:03:00 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, rest = divmod(minutes, 60)
    if hours:
        return f"{hours}:{rest:02}:{seconds:02} h"
    return f"{minutes}:{seconds:02} min" if minutes else f"{seconds} s"


def describe(row: dict, steps: int | None = None) -> str:
    """A row of the log in words: how far (of `steps`, if known), how fast, how long still."""
    parts = [f"step {row['step']}" + (f" of {steps}" if steps else ""), f"loss {row['loss']:.3f}"]
    if row.get("tokens_per_second"):
        parts.append(f"{row['tokens_per_second']:,.0f} tokens a second")
    if row.get("seconds_left"):
        parts.append(f"{clock(row['seconds_left'])} left")
    return ", ".join(parts)
