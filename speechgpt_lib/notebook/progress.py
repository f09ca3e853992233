"""What `speechgpt run` says: a line for each notebook and step, live where it is under way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LARGEST_COPY = 1_500_000  # bytes; a heavier notebook opens slowly and can't be shown on GitHub


class Reporter:
    """Says what is reused, resumed and executed.

    `on_cell` is told (notebook, number, cells, cell id) as well.  Several notebooks and steps may
    be under way at once: there is one display for all of them.
    """

    def __init__(
        self,
        on_cell: Callable[[str, int, int, str], None] | None = None,
        console: Console | None = None,
    ):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.told = on_cell
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        self.live = Progress(
            *columns,
            TextColumn("{task.fields[line]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def say(self, line: str) -> None:
        """A line of its own."""
        self.console.print(escape(line))

    def reused(self, name: str, state: dict) -> None:
        """A notebook whose executed copy still holds."""
        made = f"made {state['finished'][:16]} UTC in {clock(state['wall_seconds'])}"
        self._line(name, "reused", made)

    def executed(self, name: str, state: dict, copy: Path) -> None:
        """A notebook that has come to its end."""
        peak = f"peak {state['peak_memory_mb']:.0f} MB"
        self._line(name, "done", f"in {clock(state['wall_seconds'])}, {peak}")
        size = copy.stat().st_size
        if size > LARGEST_COPY:
            limit = f"{LARGEST_COPY / 1e6:.1f} MB is the limit"
            self._line(name, "large", f"its copy is {size / 1e6:.1f} MB; {limit}")

    def summary(self, results: list) -> None:
        """The last line of a run."""
        made = [result for result in results if not result.reused]
        took = f" in {clock(sum(result.wall_seconds for result in made))}" if made else ""
        counts = f"{len(results) - len(made)} reused, {len(made)} executed"
        self.console.print(f"{len(results)} notebooks: {counts}{took}")

    @contextlib.contextmanager
    def executing(
        self, name: str, resumed: bool
    ) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[str], None]]]:
        """Give two functions: one is told each cell, the other each line that is printed."""
        self._line(name, "resuming" if resumed else "executing", "")
        with self._task(name) as task:

            def on_cell(number: int, cells: int, cell_id: str) -> None:
                known = {"completed": number, "total": cells, "line": escape(cell_id)}
                self.live.update(task, description=f"{name} {number}/{cells}", **known)
                if self.told:
                    self.told(name, number, cells, cell_id)

            def on_line(line: str) -> None:
                self.live.update(task, line=escape(line[:80]))

            yield on_cell, on_line

    @contextlib.contextmanager
    def making(self, step: str) -> Iterator[Callable[[str], None]]:
        """Give a function that is told each line of a step: progress is live, the rest printed."""
        with self._task(step) as task:

            def on_line(line: str) -> None:
                self.live.update(task, line=escape(line.strip()[:80]))
                if not line.startswith(" "):
                    self.say(f"  {line}")

            yield on_line

    @contextlib.contextmanager
    def _task(self, name: str) -> Iterator[int]:
        """A place in the display, which is there as long as anything is."""
        self.live.start()
        task = self.live.add_task(name, total=None, line="")
        try:
            yield task
        finally:
            self.live.remove_task(task)
            if not self.live.tasks:
                self.live.stop()

    def _line(self, name: str, what: str, more: str) -> None:
        self.console.print(f"{name:36} {what:10} {escape(more)}".rstrip())


def clock(seconds: float) -> str:
    """Seconds as people say them: 9 s, 1:05 min, 2:03:00 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} h"
