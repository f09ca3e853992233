"""A training in a notebook: a curve that grows in its place, and a cell whose interruption ends
every process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel

from speechgpt_lib.notebook import live
from speechgpt_lib.notebook.figure import show_table
from speechgpt_lib.notebook.live import LossCurve
from speechgpt_lib.notebook.progress import describe
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.training.log import read_metrics
from tests.pipeline.test_launch import new_run


@pytest.fixture
def displayed(monkeypatch):
    """What was shown: (markup, place, whether it replaced what was there)."""
    shown = []

    def keep(bundle, raw, display_id, update):
        shown.append((bundle["text/html"], display_id, update))

    monkeypatch.setattr("IPython.display.display", keep)
    return shown


def test_the_curve_stays_in_its_place_and_ends_whole(displayed, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    curve = LossCurve("stage1", 50)
    for step in range(1, 51):
        clock[0] += 0.1
        curve(
            {
                "step": step,
                "loss": 5 / step,
                "tokens_per_second": 1200.0,
                "seconds_left": (50 - step) * 0.1,
            }
        )
    curve.draw()
    assert 5 <= len(displayed) <= 7, "once a second, and the end"
    assert len({place for _, place, _ in displayed}) == 1 and [
        update for *_, update in displayed
    ] == [False] + [True] * (len(displayed) - 1)
    assert (
        "step 50 of 50, loss 0.100, 1,200 tokens a second" in displayed[-1][0]
        and "50 of 50 steps" in displayed[-1][0]
    )
    curve.draw()
    assert "step 50 of 50" in displayed[-1][0] and len(displayed) <= 7, "nothing new, nothing drawn"


def test_a_row_in_words() -> None:
    assert (
        describe({"step": 3, "loss": 2.5, "seconds_left": 75.0}, 10)
        == "step 3 of 10, loss 2.500, 1:15 min left"
    )


def test_rows_are_said_now_and_then(capsys) -> None:
    tell = live.say_every(2, "masked_accuracy", "loss")
    for step in range(1, 5):
        tell({"step": step, "loss": 2.0})
    assert capsys.readouterr().out == "step 2: loss 2.00\nstep 4: loss 2.00\n"
    assert describe({"step": 3, "loss": 2.5}) == "step 3, loss 2.500"


def test_what_is_shown_becomes_html_for_a_widget() -> None:
    def show(rows: list) -> None:
        show_table(rows, "A <table>.")
        print("1 < 2")

    InteractiveShell.instance()  # as in a notebook: elsewhere there is nothing to show in
    try:
        markup = live.capture(show, [{"a": 1}])
    finally:
        InteractiveShell.clear_instance()
    assert "<table>" in markup and "A &lt;table&gt;." in markup
    assert markup.endswith("<br>1 &lt; 2")


@pytest.mark.slow
def test_one_process_draws_and_prints_its_command(displayed, tmp_path: Path, capsys) -> None:
    run = new_run(tmp_path / "run", steps=3)
    step = live.train_live(run, "text_model")
    assert "speechgpt train text_model --run" in capsys.readouterr().out
    assert step.metrics["steps"] == 3 and "step 3 of 3" in displayed[-1][0]
    shown = len(displayed)
    assert live.train_live(run, "text_model").reused and len(displayed) == shown, (
        "what is reused is not drawn"
    )


def test_an_interrupt_amid_a_picture_waits_for_its_end(
    displayed, monkeypatch, hears_interrupts
) -> None:
    curve, show = LossCurve("stage1", 2), live.show_figure

    def interrupted(*arguments, **place):
        signal.raise_signal(signal.SIGINT)
        show(*arguments, **place)

    monkeypatch.setattr(live, "show_figure", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        curve({"step": 1, "loss": 2.0})
    assert len(displayed) == 1 and signal.getsignal(signal.SIGINT) is handler


def below(pid: int) -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process(pid).children(recursive=True)
        if "speechgpt_lib.pipeline.worker" in p.cmdline()
    ]


@pytest.mark.slow
def test_interrupting_the_cell_stops_all_workers(tmp_path: Path, root: Path) -> None:
    """A real kernel trains in two processes; its cell is interrupted: no orphan, a checkpoint, and
    the cell run again goes on."""
    run = new_run(tmp_path / "run", steps=100_000)
    log = run.path / f"{folder_of('text_model')}.partial" / "metrics.jsonl"
    cell = f"""
from speechgpt_lib.notebook.live import train_live
from speechgpt_lib.runs.run import Run
train_live(Run.open({str(run.path)!r}), "text_model", processes=2)
"""
    manager, client = start_new_kernel(
        env=os.environ | {"PYTHONPATH": str(root)}, cwd=str(tmp_path)
    )
    try:
        reached = 0
        for _attempt in range(2):
            request = client.execute(
                cell, stop_on_error=False
            )  # else its error may abort the next one
            deadline = time.monotonic() + 150
            while len(read_metrics(log)) < reached + 3 and time.monotonic() < deadline:
                early = client.get_shell_msg() if client.shell_channel.msg_ready() else None
                assert early is None or early["parent_header"]["msg_id"] != request, early[
                    "content"
                ]
                time.sleep(0.05)
            assert len(read_metrics(log)) >= reached + 3, "the workers train"
            workers = below(manager.provisioner.pid)
            assert len(workers) == 3, "a launcher and two workers"
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=120)
            while reply["parent_header"]["msg_id"] != request:
                reply = client.get_shell_msg(timeout=120)
            assert (
                reply["content"]["status"] == "error"
                and reply["content"]["ename"] == "KeyboardInterrupt"
            ), reply
            _, alive = psutil.wait_procs(workers, timeout=60)
            assert not alive and not below(manager.provisioner.pid)
            saved = sorted((log.parent / "checkpoints").glob("step_*"))
            assert saved and int(saved[-1].name.removeprefix("step_")) > reached, (
                "the second attempt has gone on from the first"
            )
            reached = int(saved[-1].name.removeprefix("step_"))
        assert manager.is_alive()
        assert (
            client.execute_interactive("1 + 1", store_history=False, timeout=60)["content"][
                "status"
            ]
            == "ok"
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
