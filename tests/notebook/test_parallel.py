"""`run --jobs N` without kernels: which steps and notebooks are done, in which order, and what a
failure leaves."""

from __future__ import annotations

import io
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook import parallel
from speechgpt_lib.notebook.progress import Reporter
from speechgpt_lib.notebook.runner import Course
from speechgpt_lib.pipeline import graph
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.pipeline.step import Cost, Definition, Job
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.runs.run import Run

UNITS, VOCODER, SET = "01_unit_extraction", "02_unit_vocoder", "03_cross_modal_instructions"


class Bench:
    """A graph of four steps in three notebooks, and a note of what is done, in its order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.run = Run.create(folder / "run", load_recipe("smoke"), say=lambda line: None)
        self.notebooks = [folder / f"{name}.ipynb" for name in (UNITS, VOCODER, SET, "99_end")]
        self.did, self.fails, self.lock = [], set(), threading.Lock()
        self.said = io.StringIO()
        half = Cost(threads="half")
        steps = (
            Definition(f"{UNITS}/a", (), lambda recipe: {}, self.writes("a")),
            Definition(f"{UNITS}/b", (f"{UNITS}/a",), lambda recipe: {}, self.writes("b")),
            Definition(f"{VOCODER}/c", (f"{UNITS}/b",), lambda r: {}, self.writes("c"), cost=half),
            Definition(f"{SET}/d", (f"{UNITS}/b",), lambda recipe: {}, self.writes("d"), cost=half),
        )
        monkeypatch.setattr(graph, "STEPS", {step.name: step for step in steps})
        monkeypatch.setattr(parallel, "StepProcesses", self.server)

    def writes(self, name: str):
        def do(job: Job) -> None:
            self.note(name)
            (job.work / "out").write_text(name)

        return do

    def note(self, name: str) -> None:
        with self.lock:
            self.did.append(name)
        if name in self.fails:
            raise UserError(f"{name} has no paper")

    def server(self, path: Path, *more: object) -> InProcess:
        self.steps = InProcess(path)
        return self.steps

    def execute(self, course: Course, notebook: Path, stop: object) -> dict:
        assert not course.parameters["force"], (
            "steps are made anew once, not by the notebook as well"
        )
        alone = notebook.stem in parallel.ALONE
        assert course.threads == (None if alone else max(1, usable_cores() // 2))
        self.note(notebook.stem)
        return {"name": notebook.stem}

    def do(self, jobs: int = 2, force: bool = False, only: list[str] | None = None):
        reporter = Reporter(console=Console(file=self.said, soft_wrap=True, width=200))
        course = Course(self.run, self.notebooks, {"force": force}, {}, reporter)
        missing = [n for n in self.notebooks if only is None or n.stem in only]
        return parallel.Parallel(course, missing, jobs).run(self.execute)


class InProcess:
    """Makes its steps here."""

    def __init__(self, path: Path):
        self.run, self.copies = Run.open(path, say=lambda line: None), None

    def plan(self, notebooks: list[str], force: bool) -> tuple[list, dict]:
        return graph.plan_side_by_side(self.run, notebooks, force)

    def make(self, step: str, force: bool, say) -> None:
        say(f"making   {step}")
        make(self.run, step, force)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_steps_once_and_notebooks_after_their_steps(bench: Bench) -> None:
    outcome = bench.do()
    assert sorted(bench.did) == sorted(["a", "b", "c", "d", UNITS, VOCODER, SET, "99_end"])
    order = bench.did.index
    assert order("a") < order("b") < min(order("c"), order("d"), order(UNITS))
    assert order("c") < order(VOCODER) and order("d") < order(SET)
    assert order("99_end") == 7, "one that is none of the course's own comes after all others"
    assert outcome.done[VOCODER] == {"name": VOCODER}
    assert f"making   {VOCODER}/c" in bench.said.getvalue()


def test_what_is_there_is_not_made_again_unless_forced(bench: Bench) -> None:
    bench.do()
    bench.did.clear()
    bench.do(only=[VOCODER, SET])
    assert sorted(bench.did) == [VOCODER, SET], "their steps are there"
    bench.did.clear()
    bench.do(only=[VOCODER], force=True)
    assert bench.did == ["c", VOCODER], "its own steps alone are made anew"


def test_what_a_notebook_only_shows_is_not_forced(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr(graph, "SHOWN", {VOCODER: (f"{UNITS}/b",)})
    bench.do()
    bench.did.clear()
    bench.do(only=[VOCODER], force=True)
    assert bench.did == ["c", VOCODER]


def test_one_notebook_brings_the_steps_it_needs(bench: Bench) -> None:
    bench.do(only=[SET])
    assert bench.did == ["a", "b", "d", SET]


def test_a_failed_step_lets_the_others_finish_and_is_reported(bench: Bench) -> None:
    bench.fails = {"c"}
    with pytest.raises(UserError) as error:
        bench.do()
    assert str(error.value) == f"c has no paper (not begun, since they need it: {VOCODER}, 99_end)"
    assert {"d", UNITS, SET} <= set(bench.did) and VOCODER not in bench.did
    bench.fails = set()
    bench.did.clear()
    bench.do(only=[VOCODER, "99_end"])
    assert bench.did == ["c", VOCODER, "99_end"]


def test_a_failed_notebook_lets_the_others_finish_and_is_reported(bench: Bench) -> None:
    bench.fails = {UNITS}
    with pytest.raises(UserError, match=f"^{UNITS} has no paper .*99_end"):
        bench.do()
    assert {"c", "d", VOCODER, SET} <= set(bench.did)


def test_every_failure_is_reported(bench: Bench) -> None:
    bench.fails = {"c", "d"}
    with pytest.raises(UserError, match="c has no paper; d has no paper|d has.*; c has"):
        bench.do(jobs=4)


def test_a_signal_begins_nothing_more_and_says_that_it_resumes(bench: Bench, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(parallel, "StepProcesses", lambda path, *more: Signals(path))
    with pytest.raises(UserError, match="stopped by SIGINT; .* the same command resumes"):
        bench.do()
    assert bench.did == ["a"] and signal.getsignal(signal.SIGINT) is before


class Signals(InProcess):
    """Steps beside which somebody presses Ctrl-C."""

    def make(self, step: str, force: bool, say) -> None:
        super().make(step, force, say)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.parametrize(("minutes", "expected"), [(0.2, "all long"), (3.0, "long all")])
def test_what_takes_all_cores_comes_before_long_things_where_the_rest_is_soon_over(
    minutes: float, expected: str
) -> None:
    begun = []

    def node(name: str, needs: str, share: float, minutes: float) -> parallel.Node:
        def do() -> None:
            begun.append(name)
            if name == "beside":  # until `all` could begin but for it
                time.sleep(0.5)

        return parallel.Node(name, set(needs.split()), share, do, minutes)

    nodes = [
        node("before", "", 0.5, 0.2),
        node("beside", "", 0.5, minutes),
        node("all", "before", 1.0, 10),
        node("after", "beside", 0.5, 10),
        node("long", "", 0.5, 5),
    ]
    outcome = parallel.run_side_by_side(nodes, 2)
    assert outcome.done.keys() == {n.name for n in nodes} and not outcome.left
    assert [name for name in begun if name in ("all", "long")] == expected.split()
