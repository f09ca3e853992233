"""Things that need each other in part, done side by side: each as soon as it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

LOOK_S = 0.2  # between two looks at whether to stop


@dataclass(frozen=True)
class Node:
    """One thing to do: its name, what it needs, its share of the processor, and its function."""

    name: str
    needs: frozenset[str]
    share: float
    do: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of all nodes: results, errors, and those that were never begun."""

    done: dict[str, object]
    failed: dict[str, BaseException]
    left: tuple[str, ...]


def heights(nodes: Sequence[Node]) -> dict[str, int]:
    """Name → how many nodes stand in the longest chain that begins with it."""
    found: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in found:
            after = (node.name for node in nodes if name in node.needs)
            found[name] = 1 + max(map(height, after), default=0)
        return found[name]

    return {node.name: height(node.name) for node in nodes}


def run_side_by_side(
    nodes: Iterable[Node], jobs: int, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Do all nodes, at most `jobs` at once, whose shares add up to 1 at most.

    First comes what the longest chain of others waits for.  A node that fails keeps those that need
    it from being begun; the others go on.  Once `stopped()` is true nothing more is begun.
    """
    nodes = list(nodes)
    height = heights(nodes)
    waiting = {n.name: n for n in sorted(nodes, key=lambda n: -height[n.name])}
    running: dict[Future, Node] = {}
    done: dict[str, object] = {}
    failed: dict[str, BaseException] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for node in list(waiting.values()):
                unfinished = {*waiting, *failed, *(other.name for other in running.values())}
                share = sum(other.share for other in running.values()) + node.share
                room = len(running) < jobs and share <= 1
                if room and not node.needs & unfinished and not stopped():
                    running[pool.submit(node.do)] = waiting.pop(node.name)
            if not running:
                return Outcome(done, failed, tuple(waiting))
            for future in wait(running, LOOK_S, FIRST_COMPLETED).done:
                node = running.pop(future)
                if (error := future.exception()) is not None:
                    failed[node.name] = error
                else:
                    done[node.name] = future.result()
