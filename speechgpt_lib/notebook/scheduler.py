"""Things that need each other in part, done side by side: each as soon as it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

LOOK_S = 0.2  # between two looks at whether to stop


@dataclass(frozen=True)
class Node:
    """One thing to do: its name, what it needs, its share of the processor, and its function.

    Shares of what runs at once add up to 1 at most; a thing with share 0 runs beside anything.
    """

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


def run_side_by_side(
    nodes: Iterable[Node], jobs: int, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Do all nodes, at most `jobs` at once, earlier ones first.

    A node that fails keeps those that need it from being begun; the others go on.  Once
    `stopped()` is true nothing more is begun.
    """
    waiting = {node.name: node for node in nodes}
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
