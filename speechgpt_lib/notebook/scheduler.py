"""Things that need each other in part, done side by side: each as soon as what it needs is done and
there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

LOOK_S = 0.2  # between two looks at whether to stop


@dataclass(frozen=True)
class Node:
    """One thing to do: names of what it needs, how many places it takes, and the function that does
    it."""

    name: str
    needs: frozenset[str]
    places: int
    do: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of all nodes: results, errors, and those that were never begun."""

    done: dict[str, object]
    failed: dict[str, BaseException]
    left: tuple[str, ...]


def run_side_by_side(
    nodes: Iterable[Node], places: int, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Do all nodes in at most `places` places at once, earlier ones first.

    A node that fails keeps those that need it from being begun; the others go on.  Once `stopped()`
    is true nothing more is begun.  A node that wants more places than there are takes them all.
    """
    waiting = {node.name: node for node in nodes}
    running: dict[Future, Node] = {}
    done: dict[str, object] = {}
    failed: dict[str, BaseException] = {}
    with ThreadPoolExecutor(places) as pool:
        while True:
            free = places - sum(min(node.places, places) for node in running.values())
            for node in list(waiting.values()):
                ready = not (node.needs & (waiting.keys() | failed.keys() | _names(running)))
                if ready and min(node.places, places) <= free and not stopped():
                    running[pool.submit(node.do)] = waiting.pop(node.name)
                    free -= min(node.places, places)
            if not running:
                return Outcome(done, failed, tuple(waiting))
            for future in wait(running, LOOK_S, FIRST_COMPLETED).done:
                node = running.pop(future)
                if (error := future.exception()) is not None:
                    failed[node.name] = error
                else:
                    done[node.name] = future.result()


def _names(running: dict[Future, Node]) -> set[str]:
    return {node.name for node in running.values()}
