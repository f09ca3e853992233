"""What `speechgpt run` says while it executes notebooks: one line each, and in a terminal a live one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LARGEST_COPY = 1_500_000  # bytes; a heavier notebook opens slowly and can't be shown on GitHub


class Reporter:
    """Says what is reused, resumed and executed; `on_cell` is told (notebook, number, cells, cell id) as well."""

    def __init__(
        self,
        on_cell: Callable[[str, int, int, str], None] | None = None,
        console: Console | None = None,
    ):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.told = on_cell

    def reused(self, name: str, state: dict) -> None:
        self._line(
            name, "reused", f"made {state['finished'][:16]} UTC in {clock(state['wall_seconds'])}"
        )

    def executed(self, name: str, state: dict, copy: Path) -> None:
        self._line(
            name,
            "done",
            f"in {clock(state['wall_seconds'])}, peak {state['peak_memory_mb']:.0f} MB",
        )
        if copy.stat().st_size > LARGEST_COPY:
            self._line(
                name,
                "large",
                f"its copy is {copy.stat().st_size / 1e6:.1f} MB; {LARGEST_COPY / 1e6:.1f} MB is the limit",
            )

    def summary(self, results: list) -> None:
        made = [result for result in results if not result.reused]
        took = f" in {clock(sum(result.wall_seconds for result in made))}" if made else ""
        self.console.print(
            f"{len(results)} notebooks: {len(results) - len(made)} reused, {len(made)} executed{took}"
        )

    @contextlib.contextmanager
    def executing(
        self, name: str, resumed: bool
    ) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[str], None]]]:
        """Gives two functions: one to be told each cell, one to be told each line the notebook prints."""
        self._line(name, "resuming" if resumed else "executing", "")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[line]}"),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as progress:
            task = progress.add_task(name, total=None, line="")

            def on_cell(number: int, cells: int, cell_id: str) -> None:
                progress.update(
                    task,
                    completed=number,
                    total=cells,
                    description=f"{name} {number}/{cells}",
                    line=escape(cell_id),
                )
                if self.told:
                    self.told(name, number, cells, cell_id)

            def on_line(line: str) -> None:
                progress.update(task, line=escape(line[:80]))

            yield on_cell, on_line

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
