"""speechgpt_lib.doctor: names what is missing, with its cost, and never fails because of it."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from speechgpt_lib import doctor
from speechgpt_lib.doctor import Check
from speechgpt_lib.errors import UserError


def test_diagnosis_covers_every_part_and_turns_into_json(tmp_path):
    checks = doctor.diagnose(tmp_path / "runs" / "lab")
    found = {check.name: check for check in checks}
    parts = "Python, memory, disk, CPU cores, CPU bf16, voice synthesis, CUDA GPU, Slurm, fairseq"
    parts += ", nbgrader, Chromium"
    assert set(parts.split(", ")) <= set(found)
    assert len(found) == len(checks), "two checks share a name"
    assert found["Python"].ok and found["voice synthesis"].ok
    assert not (tmp_path / "runs").exists(), "looking must not create anything"
    rows = json.loads(json.dumps([dataclasses.asdict(check) for check in checks]))
    assert all(row["cost"] and row["expected"] and row["found"] for row in rows)
    assert all(isinstance(row["ok"], bool) for row in rows)


@pytest.mark.parametrize(
    ("version", "ok"), [("3.10.14", False), ("3.11.0", True), ("3.12.9", True), ("3.13.0", False)]
)
def test_python_versions(version, ok):
    assert doctor.python_check(version).ok is ok


def test_package_versions_against_requirements():
    checks = doctor.package_checks(
        ["rich>=1", "numpy>=1000", "no-such-package>=2", "papermill<0.1"]
    )
    assert [(check.name, check.ok) for check in checks] == [
        ("no-such-package", False),
        ("numpy", False),
        ("papermill", False),
        ("rich", True),
    ]
    assert checks[0].found == "not installed"
    assert checks[1].expected == ">=1000"
    assert "JupyterLab" in checks[2].cost
    assert all(check.required for check in checks)


def test_the_cpu_build_of_the_locked_torch_is_within_range(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.package_checks(["torch>=2.11,<=2.13.0"])[0].ok
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.13.1+cpu")
    assert not doctor.package_checks(["torch>=2.11,<=2.13.0"])[0].ok


def test_extras_and_other_pythons_ask_for_nothing_here(monkeypatch):
    declared = ["rich>=1", 'pocketsphinx>=5.1; extra == "judge"', "tomli; python_version < '3.11'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: declared)
    assert doctor.declared_requirements() == ["rich>=1"]


def test_uninstalled_package_is_one_failed_check(monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", missing)
    (check,) = doctor.package_checks(doctor.declared_requirements())
    assert (check.ok, check.required) == (False, True)
    assert "make install" in check.cost


def test_memory_allows_for_what_the_system_keeps():
    assert doctor.memory_check(3.8).ok
    small = doctor.memory_check(1.0)
    assert not small.ok
    assert "smoke" in small.cost


def test_memory_limit_of_a_control_group_counts(monkeypatch):
    real = Path.read_text
    limits = {
        "/proc/self/cgroup": "0::/batch/job\n",
        "/sys/fs/cgroup/batch/memory.max": "2000000000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: limits.get(str(path)) or real(path))
    monkeypatch.setattr(Path, "is_file", lambda path: str(path) in limits)
    assert doctor._memory_gb() == 2.0
    limits["/sys/fs/cgroup/batch/memory.max"] = "max\n"
    assert doctor._memory_gb() == psutil.virtual_memory().total / 1e9


def test_full_disk_and_read_only_folder(tmp_path, monkeypatch):
    assert str(tmp_path) in doctor.disk_check(tmp_path / "not" / "yet").found
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage._replace(free=10**8))
    full = doctor.disk_check(tmp_path)
    assert not full.ok and full.found.startswith("0.1 GB")
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: False)
    closed = doctor.disk_check(tmp_path)
    assert not closed.ok and "no right to write" in closed.found and "--run-dir" in closed.cost


def test_bf16_is_read_from_the_cpu_flags():
    assert doctor.bf16_check({"sse4_2", "avx512_bf16", "amx_bf16"}).found == "amx_bf16, avx512_bf16"
    assert not doctor.bf16_check({"avx2"}).ok
    assert doctor.bf16_check(None).found == "this system doesn't say"


def test_a_broken_voice_is_reported_not_raised(monkeypatch):
    def broken(text):
        raise RuntimeError("no\nvoice data")

    monkeypatch.setattr("speechgpt_lib.corpora.speech.synthesize", broken)
    check = doctor.voice_check()
    assert not check.ok
    assert check.found == "RuntimeError: no voice data"


def test_programs_are_found_on_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {check.name: check.ok for check in doctor.optional_checks()}["Slurm"] is False
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    slurm = next(check for check in doctor.optional_checks() if check.name == "Slurm")
    assert slurm.ok
    assert slurm.found == str(tmp_path / "sbatch")


def test_table_shows_costs_of_what_is_missing_only():
    checks = [
        Check("present", True, "1.0", ">=1", "never shown"),
        Check(
            "absent",
            False,
            "not installed",
            "the module x",
            "pip install '.[judge]'",
            required=True,
        ),
    ]
    console = Console(file=io.StringIO(), width=200)
    console.print(doctor.render(checks))
    text = console.file.getvalue()
    assert "never shown" not in text
    assert "missing" in text and "expected: the module x" in text
    assert ".[judge]" in text, "square brackets were taken for markup"


def test_jobs_beyond_memory_are_refused(monkeypatch):
    monkeypatch.setattr(doctor, "_memory_gb", lambda: 3.0)
    assert [doctor.chosen_jobs(jobs) for jobs in (1, 2, None)] == [1, 2, 2]
    with pytest.raises(UserError, match=r"--jobs 3: .* at most --jobs 2 here \(3.9 GB") as error:
        doctor.chosen_jobs(3)
    assert "\n" not in str(error.value)
    assert doctor.jobs_check(3, 3.0).required and not doctor.jobs_check(3, 3.0).ok
    assert doctor.jobs_check(1, 0.5).ok, "one at a time is what the memory check is about"
    found = {check.name: check for check in doctor.diagnose(jobs=3)}
    assert not found["jobs at once"].ok
    monkeypatch.setattr(doctor, "_memory_gb", lambda: 2.0)
    assert doctor.chosen_jobs() == 1
