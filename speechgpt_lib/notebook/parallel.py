"""Several notebooks and steps at once: steps in processes, notebooks in kernels."""

import signal
from collections.abc import Callable, Iterable, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.execution import Stop, stop_on_signals
from speechgpt_lib.pipeline.serve import StepProcesses
from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.runs.names import NOTEBOOKS

# What notebooks import, but for matplotlib, which reads its settings then.
KERNELS = ["ipykernel.kernelapp", "ipywidgets"]
# They start processes or train, and want the memory that a neighbour has.
ALONE = {"01_unit_extraction", "10_scale_out", "11_your_own_voice"}
SOON = 0.5  # minutes


class Node(NamedTuple):
    """One thing to do: its name, what it needs, its share of the processor, its function, and
    roughly its minutes."""

    name: str
    needs: Set[str]
    share: float
    do: Callable[[], object]
    minutes: float = 0.2


class Outcome(NamedTuple):
    """What became of all nodes: results, errors, and those that were never begun."""

    done: dict[str, object]
    failed: dict[str, BaseException]
    left: tuple[str, ...]


def run_side_by_side(
    nodes: Iterable[Node], jobs: int, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Do all nodes, at most `jobs` at once, whose shares add up to 1 at most.

    First comes what takes all of the processor, since others wait for it alone: where the rest is
    soon over, nothing long is begun before it.  Then comes what the longest chain of others waits
    for.  A node that fails keeps those that need it from being begun; the others go on.  Once
    `stopped()` is true nothing more is begun.
    """
    nodes = list(nodes)
    minutes = {node.name: node.minutes for node in nodes}

    @cache
    def height(name: str) -> float:
        return minutes[name] + max((height(n.name) for n in nodes if name in n.needs), default=0)

    ranked = sorted(nodes, key=lambda node: (node.share < 1, -height(node.name)))
    waiting = {node.name: node for node in ranked}
    running: dict[Future, Node] = {}
    done, failed = {}, {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for node in list(waiting.values()):
                unfinished = {*waiting, *failed, *(other.name for other in running.values())}
                share = sum(other.share for other in running.values()) + node.share
                if node.needs & unfinished or len(running) >= jobs or stopped():
                    continue
                if share <= 1:
                    running[pool.submit(node.do)] = waiting.pop(node.name)
                elif max(other.minutes for other in running.values()) <= SOON:
                    break
            if not running:
                return Outcome(done, failed, tuple(waiting))
            for future in wait(running, 0.2, FIRST_COMPLETED).done:
                name, error = running.pop(future).name, future.exception()
                if error is None:
                    done[name] = future.result()
                else:
                    failed[name] = error


class Parallel:
    """The notebooks `missing` of a `runner.Course`, and what they need and is not there yet.

    A step keeps the threads that it has when it runs alone, and with them its results: one that
    takes all of them has nothing beside it.  Notebooks mostly draw, with half of the threads.
    """

    def __init__(self, course: Any, missing: list[Path], jobs: int):
        self.course, self.missing, self.jobs = course, missing, jobs
        path, device = course.run.path, course.run.recipe.device
        self.steps = StepProcesses(path, path / "steps.log", device, KERNELS)
        # Forced steps are made anew once, before the notebooks that show them.
        parameters = course.parameters | {"force": False}
        self.showing = replace(course, parameters=parameters, copies=self.steps.copies)
        self.beside = replace(self.showing, threads=max(1, usable_cores() // 2))
        self.stops: list[Stop] = []
        self.signal: str | None = None

    def __call__(self, number: int, frame: object) -> None:
        """Stop everything that is under way, for a signal; nothing more is begun."""
        self.signal = signal.Signals(number).name
        self.steps.interrupt()
        for stop in self.stops:
            stop(number, frame)

    def close(self) -> None:
        """End the processes that made steps."""
        for each in (self.steps, *self.stops):
            each.close()

    def run(self, execute: Callable[[Any, Path, Stop], dict]) -> Outcome:
        """Do everything; UserError where something failed or a signal came, naming all that did."""
        nodes = self._nodes(execute)
        with stop_on_signals(self):
            outcome = run_side_by_side(nodes, self.jobs, lambda: self.signal is not None)
        if self.signal:
            kept = f"what was made is kept in {self.course.run.path}, and the same command resumes"
            raise UserError(f"stopped by {self.signal}; {kept}")
        errors = list(outcome.failed.values())
        if unforeseen := [error for error in errors if not isinstance(error, UserError)]:
            raise unforeseen[0]
        if errors:
            left = f" (not begun, since they need it: {', '.join(outcome.left)})"
            raise UserError("; ".join(map(str, errors)) + left * bool(outcome.left))
        return outcome

    def _nodes(self, execute: Callable) -> list[Node]:
        stems = [notebook.stem for notebook in self.missing]
        todo, waits = self.steps.plan(stems, self.course.parameters["force"])
        nodes = [
            Node(name, needs, share, partial(self._make, name, anew), minutes)
            for name, needs, share, minutes, anew in todo
        ]
        for place, notebook in enumerate(self.missing):
            needs = waits[notebook.stem]
            if notebook.stem not in NOTEBOOKS:  # it may read the results of all before it
                needs |= {*stems[:place]}
            self.stops.append(Stop())
            alone = notebook.stem in ALONE
            course = self.showing if alone else self.beside
            show = partial(execute, course, notebook, self.stops[-1])
            nodes.append(Node(notebook.stem, needs, 1.0 if alone else 0.5, show))
        return nodes

    def _make(self, name: str, force: bool) -> None:
        with self.course.reporter.making(name) as say:
            self.steps.make(name, force, say)
