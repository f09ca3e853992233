"""From this machine to a list of checks: what is there, what the course expects, what each missing
part costs; the words stand in `doctor.yaml`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.runs.machine import cpu_facts, granted_memory, usable_cores

if TYPE_CHECKING:
    from speechgpt_lib.recipes.schema import Recipe

PYTHONS = ">=3.11,<3.13"
MEMORY_GB, DISK_GB, CORES = 4.0, 2.0, 2
JOB_GB = 1.3  # of memory that a notebook or step of the lab recipe takes at most, beside another
_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Check:
    """One part of the set-up; `cost`: what is lost while it is missing; `required`: whether the lab
    recipe needs it."""

    name: str
    ok: bool
    found: str
    expected: str
    cost: str
    required: bool = False


def diagnose(run_dir: Path | None = None, jobs: int = 1) -> list[Check]:
    """Look at this machine and installation; never raises for what is missing.

    run_dir: where results would go; need not exist yet.  Its disk is the one measured; default: the
        current folder's. Takes about 3 seconds, most of them to import torch.  `dataclasses.asdict`
        makes a check ready for JSON.
    """
    return [
        python_check(platform.python_version()),
        *package_checks(declared_requirements()),
        voice_check(),
        memory_check(_memory_gb()),
        disk_check(run_dir or Path.cwd()),
        _check("CPU cores", usable_cores() >= CORES, str(usable_cores()), least=CORES),
        jobs_check(jobs, _memory_gb()),
        bf16_check(set(cpu_facts()["extensions"])),
        *accelerator_checks(),
        *optional_checks(),
    ]


def render(checks: Iterable[Check]) -> Table:
    """A table for people; what was expected and what it costs stand only beside what is missing."""
    table = Table(title="speechgpt doctor", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "part", "found", "without it"):
        table.add_column(column, overflow="fold", no_wrap=not column)
    for check in checks:
        mark = "[bold red]missing[/]" if check.required else "[yellow]without[/]"
        meaning = "" if check.ok else f"{check.cost} (expected: {check.expected})"
        # Names and messages from outside may hold square brackets, which rich takes for markup.
        words = map(escape, (check.name, check.found, meaning))
        table.add_row("[green]ok[/]" if check.ok else mark, *words)
    return table


def python_check(version: str) -> Check:
    """Whether this course was tried with this Python."""
    ok = SpecifierSet(PYTHONS).contains(version)
    return _check("Python", ok, version, versions=PYTHONS)


def declared_requirements() -> list[str]:
    """The core requirements of the installed package, e.g. `torch<=2.13.0,>=2.11`; empty if it is
    not installed."""
    try:
        declared = map(Requirement, importlib.metadata.requires("speechgpt_lib") or [])
    except importlib.metadata.PackageNotFoundError:
        return []
    # With no extra asked for, this drops those of the extras, and those of other systems and Python
    # versions.
    here = {"extra": ""}
    return [str(one) for one in declared if one.marker is None or one.marker.evaluate(here)]


def package_checks(requirements: list[str]) -> list[Check]:
    """One check a requirement, by its installed version; nothing is imported."""
    if not requirements:
        found = f"not installed, runs from {Path(__file__).parents[1]}"
        return [_check("speechgpt_lib", False, found)]
    checks = []
    for one in sorted(map(Requirement, requirements), key=lambda one: one.name.lower()):
        cost = _WORDS["packages"].get(one.name, "the steps that import it fail; make install")
        found = _version(one.name)
        ok = bool(found) and one.specifier.contains(found, prereleases=True)
        expected, found = str(one.specifier) or "any version", found or "not installed"
        checks.append(Check(one.name, ok, found, expected, cost, required=True))
    return checks


def voice_check() -> Check:
    """Speak one word with the lab corpus's own voice synthesis (eSpeak NG inside parselmouth)."""
    try:
        from speechgpt_lib.corpora.speech import synthesize
        from speechgpt_lib.rates import SAMPLE_RATE

        wave, phones = synthesize("hello")
        spoken = sum(bool(phone.label) for phone in phones)
        found = f"{len(wave) / SAMPLE_RATE:.2f} s, {spoken} phones"
        return _check("voice synthesis", spoken and float(abs(wave).max()) > 0.01, found)
    except Exception as error:  # a doctor reports whatever is broken, in the part's own words
        return _check("voice synthesis", False, _named(error))


def memory_check(gigabytes: float) -> Check:
    """Whether the lab recipe fits into memory."""
    enough = gigabytes >= 0.9 * MEMORY_GB  # the system keeps a part of a "4 GB" machine for itself
    return _check("memory", enough, f"{gigabytes:.1f} GB", least=MEMORY_GB)


def disk_check(run_dir: Path) -> Check:
    """Free space, and whether one may write, where `run_dir` lies or would be made."""
    folder = run_dir.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free, writable = shutil.disk_usage(folder).free / 1e9, os.access(folder, os.W_OK)
    found = f"{free:.1f} GB free in {folder}" if writable else f"no right to write in {folder}"
    return _check("disk", writable and free >= DISK_GB, found, least=DISK_GB)


def jobs_check(jobs: int, gigabytes: float) -> Check:
    """Whether so many notebooks and steps at once fit into memory; one always may try."""
    most = max(1, int(gigabytes // JOB_GB))
    given = {"needed": jobs * JOB_GB, "jobs": jobs, "most": most}
    return _check("jobs at once", jobs <= most, f"{gigabytes:.1f} GB", **given)


def chosen_jobs(jobs: int | None = None) -> int:
    """`jobs`, or else two if they fit; UserError where `jobs` would not fit into memory."""
    check = jobs_check(jobs or 2, _memory_gb())
    if jobs is None:
        return 2 if check.ok else 1
    if not check.ok:
        there = f"{check.expected} are needed, there are {check.found}"
        raise UserError(f"--jobs {jobs}: {check.cost} ({there})")
    return jobs


def check_parts(recipe: Recipe) -> list[Check]:
    """A check for each part that a recipe reads: is it there, and whole as far as one can tell?"""
    from speechgpt_lib.pipeline.fetch import parts_of

    data, checks = recipe.data, []
    cost = f"recipe {recipe.name} can't run; speechgpt fetch --recipe {recipe.name} -o {data}"
    for part in parts_of(recipe):
        state, expected = part.state(data), f"{part.what}, in {data}"
        checks.append(Check(part.path, state == "there", state, expected, cost, required=True))
    return checks


def bf16_check(flags: set[str] | None) -> Check:
    """Whether the CPU computes in bfloat16 itself; `flags` are its features as Linux names them,
    none where unknown."""
    found = sorted((flags or set()) & {"avx512_bf16", "amx_bf16", "bf16"})
    otherwise = "none" if flags else "this system doesn't say"
    return _check("CPU bf16", bool(found), ", ".join(found) or otherwise)


def accelerator_checks() -> list[Check]:
    """CUDA and MPS as torch sees them; the lab recipe needs neither."""
    devices: list[str] = []
    try:
        import torch

        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            devices.append(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)")
        cuda = ", ".join(devices) or "none"
        mps = "available" if torch.backends.mps.is_available() else "none"
    except (ImportError, OSError, RuntimeError) as error:
        # no torch, a library it lacks, a driver that doesn't answer
        devices, cuda, mps = [], _named(error), _named(error)
    apple = _check("Apple GPU (MPS)", mps == "available", mps)
    return [_check("CUDA GPU", bool(devices), cuda), apple]


def optional_checks() -> list[Check]:
    """Parts one can do without: Python modules by `find_spec`, programs by PATH; nothing is
    imported or started."""
    checks = []
    for name, part in _WORDS["parts"].items():
        if module := part.get("module"):
            there = importlib.util.find_spec(module) is not None
            found = (_version(module) or "installed") if there else "not installed"
            checks.append(_check(name, there, found))
        elif programs := part.get("programs"):
            path = next(filter(None, map(shutil.which, programs)), None)
            checks.append(_check(name, path is not None, path or "not on PATH"))
    return checks


def _check(name: str, ok: bool, found: str, **given: object) -> Check:
    """A check in the words of `doctor.yaml`, with `given` filled in."""
    part = _WORDS["parts"][name]
    expected, cost = (part[key].format(**given) for key in ("expected", "cost"))
    return Check(name, bool(ok), found, expected, cost, part.get("required", False))


def _version(package: str) -> str:
    """The installed version, "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _memory_gb() -> float:
    return granted_memory() / 1e9
