"""Things side by side: each after what it needs, within the jobs and the processor there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_lib.notebook.parallel import Node, Outcome, run_side_by_side


class Work:
    """Functions to do that note when they begin and end, and what runs beside them."""

    def __init__(self, pause: float = 0.002):
        self.pause, self.lock, self.running, self.events = pause, threading.Lock(), {}, []
        self.most, self.most_share = 0, 0.0

    def node(self, name: str, needs: Iterable[str] = (), share: float = 0.0, fails: bool = False):
        def do() -> str:
            with self.lock:
                self.running[name] = share
                self.most = max(self.most, len(self.running))
                self.most_share = max(self.most_share, sum(self.running.values()))
                self.events.append(f"+{name}")
            time.sleep(self.pause)
            with self.lock:
                del self.running[name]
                self.events.append(f"-{name}")
            if fails:
                raise ValueError(f"{name} failed")
            return name.upper()

        return Node(name, frozenset(needs), share, do)


def test_each_begins_after_what_it_needs() -> None:
    work = Work(pause=0.1)  # a busy machine starts threads late
    nodes = [work.node("c", "ab"), work.node("a"), work.node("b", "a"), work.node("d")]
    outcome = run_side_by_side(nodes, 2)
    assert outcome == Outcome({n: n.upper() for n in "adbc"}, {}, ())
    assert work.events.index("-a") < work.events.index("+b") < work.events.index("-b")
    assert work.events.index("-b") < work.events.index("+c") and work.most == 2


def test_one_place_keeps_the_order_given() -> None:
    work = Work()
    run_side_by_side([work.node(n) for n in "dacb"], 1)
    assert [event for event in work.events if event[0] == "+"] == ["+d", "+a", "+c", "+b"]


def test_what_the_longest_chain_waits_for_comes_first() -> None:
    work = Work()
    nodes = [work.node("a"), work.node("b"), work.node("c", "b"), work.node("d", "c")]
    run_side_by_side(nodes, 1)
    assert [event for event in work.events if event[0] == "+"] == ["+b", "+c", "+a", "+d"]
    work, rest = Work(), nodes[1:]
    nodes = [work.node("a")._replace(minutes=9.0), *(work.node(n.name, n.needs) for n in rest)]
    run_side_by_side(nodes, 1)
    assert [event for event in work.events if event[0] == "+"] == ["+a", "+b", "+c", "+d"]


def test_what_takes_all_comes_before_longer_chains() -> None:
    work = Work()
    nodes = [work.node("a", share=0.5), work.node("b", "a", 0.5), work.node("c", share=1.0)]
    run_side_by_side(nodes, 2)
    assert [event for event in work.events if event[0] == "+"] == ["+c", "+a", "+b"]


def test_a_failure_stops_what_needs_it_and_nothing_else() -> None:
    work = Work()
    nodes = [
        work.node("a", fails=True),
        work.node("b", "a"),
        work.node("c", "b"),
        work.node("d"),
        work.node("e", "d"),
    ]
    outcome = run_side_by_side(nodes, 2)
    assert outcome.done == {"d": "D", "e": "E"} and outcome.left == ("b", "c")
    assert str(outcome.failed["a"]) == "a failed" and len(outcome.failed) == 1


def test_those_that_take_the_whole_processor_run_one_after_the_other() -> None:
    work = Work()
    nodes = [work.node("a", share=1), work.node("b", share=1), work.node("c"), work.node("d")]
    assert len(run_side_by_side(nodes, 2).done) == 4
    assert work.most_share == 1 and work.most == 2, "beside them runs what needs little"
    assert work.events.index("-a") < work.events.index("+b")


def test_two_halves_run_side_by_side() -> None:
    work = Work()
    run_side_by_side([work.node(name, share=0.5) for name in "abcd"], 4)
    assert work.most == 2 and work.most_share == 1


def test_nothing_more_is_begun_once_it_is_stopped() -> None:
    work, stopped = Work(), threading.Event()
    first = work.node("a")
    node = Node("a", frozenset(), 1, lambda: (first.do(), stopped.set()))
    outcome = run_side_by_side([node, work.node("b"), work.node("c")], 1, stopped.is_set)
    assert list(outcome.done) == ["a"] and outcome.left == ("b", "c") and not outcome.failed


def test_an_interruption_within_a_node_is_a_failure_like_others() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    outcome = run_side_by_side([Node("a", frozenset(), 1, interrupted), Work().node("b")], 1)
    assert isinstance(outcome.failed["a"], KeyboardInterrupt) and outcome.done == {"b": "B"}


def test_nothing_to_do_is_done() -> None:
    assert run_side_by_side([], 2) == Outcome({}, {}, ())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_graph_is_done_in_an_order_that_fits(data: st.DataObject) -> None:
    count, jobs = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3))
    work, needs = Work(), {}
    for k in range(count):
        chosen = data.draw(st.sets(st.integers(0, k - 1), max_size=3)) if k else set()
        needs[str(k)] = {str(n) for n in chosen}
    nodes = [work.node(n, needs[n], data.draw(st.sampled_from([0, 0.5, 1]))) for n in needs]
    shuffled = data.draw(st.permutations(nodes))
    assert run_side_by_side(shuffled, jobs).done.keys() == needs.keys()
    for name, wanted in needs.items():
        for need in wanted:
            assert work.events.index(f"-{need}") < work.events.index(f"+{name}")
    assert work.most <= jobs and work.most_share <= 1
