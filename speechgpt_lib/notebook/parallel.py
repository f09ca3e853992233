"""Several notebooks and steps of a run at once: steps in processes that are kept, notebooks in
kernels, one display."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.execution import SIGNALS, Stop
from speechgpt_lib.notebook.scheduler import Node, Outcome, run_side_by_side
from speechgpt_lib.pipeline.graph import STEPS, notebook_steps, order, plan
from speechgpt_lib.pipeline.serve import StepServer
from speechgpt_lib.runs.names import NOTEBOOKS, notebook_of


class Parallel:
    """The notebooks `missing` of a `runner.Course`, and the steps that they need and that are not
    there yet.

    A step keeps the threads that it has when it runs alone, and with them its results: one that
    takes all of them has nothing beside it.  Notebooks mostly draw, which takes one thread.
    """

    def __init__(self, course: Any, missing: list[Path], jobs: int):
        self.course, self.missing, self.jobs = course, missing, jobs
        # Forced steps are made anew once, before the notebooks that show them.
        self.showing = replace(course, parameters=course.parameters | {"force": False})
        self.servers: list[StepServer] = []
        self.free: queue.SimpleQueue[StepServer] = queue.SimpleQueue()
        self.stops: list[Stop] = []
        self.signal: str | None = None
        self.lock = threading.Lock()

    def run(self, execute: Callable[[Any, Path, Stop], dict]) -> Outcome:
        """Do everything; UserError where something failed or a signal came, naming all that did."""
        nodes = self._nodes(execute)
        with self._signals():
            try:
                outcome = run_side_by_side(nodes, self.jobs, lambda: self.signal is not None)
            finally:
                for server in self.servers:
                    server.close()
        if self.signal:
            kept = f"what was made is kept in {self.course.run.path}, and the same command resumes"
            raise UserError(f"stopped by {self.signal}; {kept}")
        if outcome.failed:
            for error in outcome.failed.values():
                if not isinstance(error, UserError):
                    raise error
            what = "; ".join(str(error) for error in outcome.failed.values())
            left = (
                f" (not begun, since they need it: {', '.join(outcome.left)})"
                if outcome.left
                else ""
            )
            raise UserError(f"{what}{left}")
        return outcome

    def _nodes(self, execute: Callable) -> list[Node]:
        run, force = self.course.run, self.course.force
        own = {n: self._steps_of(n) for n in self.missing}
        names = order(run.recipe, [name for steps in own.values() for name in steps])
        states = {p.step: p.state for p in plan(run, names)}
        made = {s for n, steps in own.items() for s in steps if notebook_of(s) == n.stem}
        forced = made if force else set()  # not those that a notebook only shows
        todo = [name for name in names if states[name] != "reused" or name in forced]
        nodes = []
        for name in todo:
            step = STEPS[name]
            needs = frozenset(need for need in step.inputs(run.recipe) if need in todo)
            half = step.cost.threads == "half" and run.recipe.device == "cpu"
            share = 0.5 if half else 1.0
            nodes.append(Node(name, needs, share, self._make(name, name in forced)))
        for notebook, steps in own.items():
            needs = {name for name in order(run.recipe, steps) if name in todo}
            needs |= self._before(notebook)
            show = self._notebook(notebook, execute)
            nodes.append(Node(notebook.stem, frozenset(needs), 0.5, show))
        return nodes

    def _steps_of(self, notebook: Path) -> list[str]:
        known = notebook.stem in NOTEBOOKS
        return notebook_steps(self.course.run.recipe, notebook.stem) if known else []

    def _before(self, notebook: Path) -> set[str]:
        """Of a notebook that is none of the course's own: all before it, whose results it may
        read."""
        if notebook.stem in NOTEBOOKS:
            return set()
        return {other.stem for other in self.missing[: self.missing.index(notebook)]}

    def _make(self, name: str, force: bool) -> Callable[[], None]:
        def do() -> None:
            server = self._server()
            with self.course.reporter.making(name) as say:
                server.make(name, force, say)
            self.free.put(server)  # one that failed is not used again

        return do

    def _server(self) -> StepServer:
        with contextlib.suppress(queue.Empty):
            return self.free.get_nowait()
        with self.lock:
            server = StepServer(self.course.run.path, self.course.run.path / "steps.log")
            self.servers.append(server)
            return server

    def _notebook(self, notebook: Path, execute: Callable) -> Callable[[], dict]:
        def do() -> dict:
            stop = Stop()
            with self.lock:
                self.stops.append(stop)
            try:
                return execute(self.showing, notebook, stop)
            finally:
                stop.close()

        return do

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal stops everything that is under way, and nothing more is begun."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop_all(number: int, frame: object) -> None:
            self.signal = signal.Signals(number).name
            for server in self.servers:
                server.interrupt()
            for stop in self.stops:
                stop(number, frame)

        before = {number: signal.signal(number, stop_all) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
