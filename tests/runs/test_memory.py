"""The stop-watch of a step: it goes on where an interrupted attempt ended, and no file can stop
it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechgpt_lib.runs.machine import Monitor, tree_memory_mb
from tests.builders import files_limited_to


def test_time_and_peak_of_an_earlier_attempt_count(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text(json.dumps({"seconds": 100.0, "cpu_seconds": 50.0, "peak_memory_mb": 1e6}))
    with Monitor(path) as monitor:
        pass
    assert 100 <= monitor.seconds < 160 and monitor.peak_memory_mb == 1e6
    assert 50 <= monitor.cpu_seconds < 110
    assert json.loads(path.read_text())["seconds"] >= 100


def test_the_peak_is_that_of_this_process(tmp_path: Path) -> None:
    with Monitor(tmp_path / "kept") as monitor:
        pass
    assert 0.5 * tree_memory_mb() < monitor.peak_memory_mb < 2 * tree_memory_mb()


def test_a_half_written_record_is_measured_afresh(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text('{"seconds": 10')
    with Monitor(path) as monitor:
        pass
    assert monitor.seconds < 10
    assert json.loads(path.read_text()).keys() == {"seconds", "cpu_seconds", "peak_memory_mb"}


def test_processor_time_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass"
    begun = time.process_time()
    with Monitor(tmp_path / "kept", interval_s=0.05) as monitor:
        subprocess.run([sys.executable, "-c", busy], check=True)
        while time.process_time() - begun < 0.2:
            pass
    assert 0.7 < monitor.cpu_seconds < 5


def test_a_record_that_cannot_be_written_does_not_stop_the_step(tmp_path: Path) -> None:
    with Monitor(tmp_path / "absent" / "progress.json") as monitor:
        pass
    assert monitor.peak_memory_mb > 0


def test_a_full_disk_leaves_nothing_beside_the_stop_watch(tmp_path: Path) -> None:
    with files_limited_to(0), Monitor(tmp_path / "progress.json", interval_s=0.01):
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"seconds": "x"}', "\x00", "[" * 10_000, '{"seconds": NaN}'],
    ids=lambda text: ascii(text[:20]),
)
def test_a_damaged_stop_watch_starts_at_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text(text)
    assert Monitor(path).seconds == 0.0
