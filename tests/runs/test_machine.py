"""What is said of the processor, on Linux and elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechgpt_lib.runs import machine

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9V74
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16

processor\t: 1
cpu family\t: 6
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\nCPU part\t: 0xd40\n"


def told(monkeypatch: pytest.MonkeyPatch, text: str | None) -> dict:
    def read_text(path: Path) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(machine.Path, "read_text", read_text)
    return machine.cpu_facts()


def test_family_model_and_vector_extensions_of_the_first_core(monkeypatch) -> None:
    assert told(monkeypatch, X86) == {
        "name": "AMD EPYC 9V74",
        "family": 25,
        "model": 17,
        "extensions": ["avx2", "avx512f", "avx512_bf16"],
    }


def test_another_kind_of_processor_has_no_numbers(monkeypatch) -> None:
    found = told(monkeypatch, ARM)
    assert (found["family"], found["model"]) == (None, None) and found["name"]
    assert found["extensions"] == ["asimd", "sve", "bf16"]


def test_a_system_without_that_file_still_has_a_name(monkeypatch) -> None:
    found = told(monkeypatch, None)
    assert found["name"] and found["extensions"] == []


def test_here_it_is_json_and_the_cores_are_those_we_may_use() -> None:
    assert json.loads(json.dumps(machine.cpu_facts()))["name"]
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)


def test_what_arrow_keeps_goes_back_too(monkeypatch) -> None:
    freed = []
    pool = SimpleNamespace(release_unused=lambda: freed.append(1))
    arrow = SimpleNamespace(default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    machine.return_free_memory(collect=False)
    assert freed == [1]
    monkeypatch.delitem(sys.modules, "pyarrow")
    machine.return_free_memory()
    assert freed == [1] and "pyarrow" not in sys.modules, "it is not loaded for that"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_stays_inside_the_block_and_goes_back_after_it() -> None:
    code = (
        "import numpy, psutil\n"
        "from speechgpt_lib.runs.machine import keeping_memory\n"
        "used = lambda: psutil.Process().memory_info().rss / 2**20\n"
        "def work(): return float(numpy.ones(25_000_000).sum())\n"
        "before = used(); work(); print(used() - before)\n"
        "with keeping_memory():\n    work(); print(used() - before)\n"
        "print(used() - before); work(); print(used() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, inside, after, again = map(float, done.stdout.split())
    assert inside > 150 and max(first, after, again) < 50
