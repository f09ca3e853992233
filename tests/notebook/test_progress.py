import io

import pytest
from rich.console import Console

from speechgpt_lib.notebook.progress import LARGEST_COPY, Reporter, clock
from speechgpt_lib.notebook.runner import NotebookResult

STATE = {
    "finished": "2025-05-01T10:11:12.000000+00:00",
    "wall_seconds": 65.4,
    "peak_memory_mb": 812.3,
}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (65, "1:05 min"), (3661, "1:01:01 h")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_lines_of_a_run(tmp_path):
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes(b" " * (LARGEST_COPY + 1))
    file = io.StringIO()
    reporter = Reporter(Console(file=file, soft_wrap=True))
    reporter.reused("00_start_here", STATE)
    with reporter.executing("01_unit_extraction", resumed=True) as (on_cell, on_line):
        on_cell(1, 20, "load-audio")
        on_line("a line with [brackets]")
    reporter.executed("01_unit_extraction", STATE, copy)
    reporter.summary(
        [NotebookResult("a", copy, True, 1, 1), NotebookResult("b", copy, False, 65, 1)]
    )
    assert [line.split(maxsplit=2) for line in file.getvalue().splitlines()] == [
        ["00_start_here", "reused", "made 2025-05-01T10:11 UTC in 1:05 min"],
        ["01_unit_extraction", "resuming"],
        ["01_unit_extraction", "done", "in 1:05 min, peak 812 MB"],
        ["01_unit_extraction", "large", "its copy is 1.5 MB; 1.5 MB is the limit"],
        ["2", "notebooks:", "1 reused, 1 executed in 1:05 min"],
    ]


def test_a_terminal_sees_the_cell_and_the_last_line():
    file = io.StringIO()
    reporter = Reporter(console=Console(file=file, force_terminal=True, width=120))
    with reporter.executing("01_unit_extraction", resumed=False) as (on_cell, on_line):
        on_cell(3, 20, "train-hubert")
        on_line("step 10 [loss 3.2]")
        reporter.live.refresh()  # as it does ten times a second
    assert "01_unit_extraction 3/20" in file.getvalue() and "step 10 [loss 3.2]" in file.getvalue()


def test_steps_and_notebooks_share_one_display():
    file = io.StringIO()
    reporter = Reporter(console=Console(file=file, force_terminal=True, width=120))
    with reporter.making("text_model") as say:
        say("making   05_vocabulary_expansion/text_model")
        with reporter.executing("01_unit_extraction", resumed=False) as (on_cell, _):
            on_cell(3, 20, "train-hubert")
            say("      … step 10 loss 3.2")
            assert [task.description for task in reporter.live.tasks] == [
                "text_model",
                "01_unit_extraction 3/20",
            ]
            reporter.live.refresh()
        assert reporter.live.live.is_started, "a neighbour has ended, the display goes on"
    assert not reporter.live.live.is_started and not reporter.live.tasks
    text = file.getvalue()
    assert "step 10 loss 3.2" in text and "making   05_vocabulary_expansion/text_model" in text


def test_without_a_terminal_only_whole_lines_are_printed():
    file = io.StringIO()
    reporter = Reporter(console=Console(file=file, soft_wrap=True))
    with reporter.making("text_model") as say:
        say("making   [a]/text_model")
        say("      … step 10 loss 3.2")
    assert file.getvalue() == "  making   [a]/text_model\n"
