"""From this machine to a list of checks: what is there, what the course expects, what each missing
part costs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.machine import cpu_facts, usable_cores

DISTRIBUTION = "speechgpt_lib"
PYTHONS = ">=3.11,<3.13"
MEMORY_GB = 4.0
DISK_GB = 2.0
CORES = 2
JOB_GB = 1.3  # of memory that a notebook or step of the lab recipe takes at most, beside another

# What goes on without a core package; of the others, nothing does.
_SPARED = {
    "jupyterlab": "`make lab` can't open the notebooks; `speechgpt run` still executes them",
    "ipywidgets": "no sliders in the notebooks; the figures under them stay",
    "matplotlib": "no figures: notebooks fail, single commands go on",
    "papermill": "`speechgpt run` can't execute notebooks; JupyterLab and single commands go on",
    "praat-parselmouth": "no lab corpus can be spoken; a run made before can still be used",
}


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
        cores_check(usable_cores()),
        jobs_check(jobs, _memory_gb()),
        bf16_check(set(cpu_facts()["extensions"]) or None),
        *accelerator_checks(),
        *optional_checks(),
    ]


def render(checks: Iterable[Check]) -> Table:
    """A table for people; what was expected and what it costs stand only beside what is missing."""
    table = Table(title="speechgpt doctor", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "part", "found", "without it"):
        table.add_column(column, overflow="fold", no_wrap=not column)
    for check in checks:
        mark = (
            "[green]ok[/]"
            if check.ok
            else "[bold red]missing[/]"
            if check.required
            else "[yellow]without[/]"
        )
        meaning = "" if check.ok else f"{check.cost} (expected: {check.expected})"
        # Names and messages from outside may hold square brackets, which rich would take for
        # markup.
        table.add_row(mark, *map(escape, (check.name, check.found, meaning)))
    return table


def python_check(version: str) -> Check:
    cost = "this version was never tried: anything may fail; make PYTHON=python3.11 install"
    return Check(
        "Python", SpecifierSet(PYTHONS).contains(version), version, PYTHONS, cost, required=True
    )


def declared_requirements() -> list[str]:
    """The core requirements of the installed package, e.g. `torch<=2.13.0,>=2.11`; empty if it is
    not installed."""
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    # With no extra asked for, this drops those of the extras, and those of other systems and Python
    # versions.
    return [
        text
        for text in declared
        if (marker := Requirement(text).marker) is None or marker.evaluate({"extra": ""})
    ]


def package_checks(requirements: list[str]) -> list[Check]:
    """One check a requirement, by its installed version; nothing is imported."""
    if not requirements:
        found = f"not installed, runs from {Path(__file__).parents[1]}"
        cost = "the versions of its parts can't be checked; make install"
        return [Check("speechgpt_lib", False, found, "an installation", cost, required=True)]
    checks = []
    for requirement in sorted(
        map(Requirement, requirements), key=lambda requirement: requirement.name.lower()
    ):
        cost = _SPARED.get(requirement.name, "the steps that import it fail; make install")
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        ok = bool(found) and requirement.specifier.contains(found, prereleases=True)
        expected = str(requirement.specifier) or "any version"
        checks.append(
            Check(requirement.name, ok, found or "not installed", expected, cost, required=True)
        )
    return checks


def voice_check() -> Check:
    """Speak one word with the lab corpus's own voice synthesis (eSpeak NG inside parselmouth)."""
    expected, cost = (
        "a spoken word",
        "no lab corpus and no fresh questions; recordings of your own still work",
    )
    try:
        from speechgpt_lib.corpora.speech import synthesize
        from speechgpt_lib.rates import SAMPLE_RATE

        wave, phones = synthesize("hello")
    except Exception as error:  # a doctor reports whatever is broken, in the part's own words
        return Check("voice synthesis", False, _one_line(error), expected, cost, required=True)
    spoken = [phone.label for phone in phones if phone.label]
    found = f"{len(wave) / SAMPLE_RATE:.2f} s, {len(spoken)} phones"
    return Check(
        "voice synthesis",
        bool(spoken) and float(abs(wave).max()) > 0.01,
        found,
        expected,
        cost,
        required=True,
    )


def memory_check(gigabytes: float) -> Check:
    cost = "the lab recipe may be killed; the smoke recipe needs less: speechgpt run --recipe smoke"
    found = f"{gigabytes:.1f} GB"
    # The system keeps a part of a "4 GB" machine for itself.
    return Check(
        "memory", gigabytes >= 0.9 * MEMORY_GB, found, f"{MEMORY_GB:g} GB", cost, required=True
    )


def disk_check(run_dir: Path) -> Check:
    """Free space, and whether one may write, where `run_dir` lies or would be made."""
    folder = run_dir.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    expected = f"{DISK_GB:g} GB, writable"
    if not os.access(folder, os.W_OK):
        cost = "no results can be kept there: give another folder, speechgpt run --run-dir DIR"
        return Check("disk", False, f"no right to write in {folder}", expected, cost, required=True)
    free = shutil.disk_usage(folder).free / 1e9
    cost = "a run may stop half-way (what is finished is kept): free space, or give --run-dir DIR"
    return Check(
        "disk", free >= DISK_GB, f"{free:.1f} GB free in {folder}", expected, cost, required=True
    )


def jobs_check(jobs: int, gigabytes: float) -> Check:
    """Whether so many notebooks and steps at once fit into memory."""
    most = max(1, int(gigabytes // JOB_GB))
    cost = f"the run may be killed for want of memory: at most --jobs {most} here"
    expected = f"{jobs * JOB_GB:.1f} GB for --jobs {jobs}"
    return Check(
        "jobs at once", jobs <= most, f"{gigabytes:.1f} GB", expected, cost, required=jobs > 1
    )


def check_jobs(jobs: int) -> None:
    """Raises UserError where so many jobs at once would not fit into memory."""
    check = jobs_check(jobs, _memory_gb())
    if jobs > 1 and not check.ok:
        raise UserError(
            f"--jobs {jobs}: {check.cost} ({check.expected} are needed, there are {check.found})"
        )


def cores_check(cores: int) -> Check:
    return Check(
        "CPU cores",
        cores >= CORES,
        str(cores),
        str(CORES),
        "the times in the notebooks are about doubled",
    )


def bf16_check(flags: set[str] | None) -> Check:
    """Whether the CPU computes in bfloat16 itself; `flags` are its features as Linux names them,
    None where unknown."""
    expected = "avx512_bf16, amx_bf16 or bf16"
    cost = (
        "smoke and lab lose nothing, they compute in 32 bits; a bf16 run on this CPU would be slow"
    )
    if flags is None:
        return Check("CPU bf16", False, "this system doesn't say", expected, cost)
    found = sorted(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    return Check("CPU bf16", bool(found), ", ".join(found) or "none", expected, cost)


def accelerator_checks() -> list[Check]:
    """CUDA and MPS as torch sees them; the lab recipe needs neither."""
    cost = "smoke and lab lose nothing, they are made for the CPU; release and paper can't run"
    try:
        import torch

        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        cuda = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
        mps = torch.backends.mps.is_available()
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # no torch, a library it lacks, a driver that doesn't answer
        found = _one_line(error)
        return [
            Check(name, False, found, "a device", cost) for name in ("CUDA GPU", "Apple GPU (MPS)")
        ]
    return [
        Check("CUDA GPU", bool(cuda), cuda or "none", "a device", cost),
        Check(
            "Apple GPU (MPS)",
            mps,
            "available" if mps else "none",
            "a device",
            "smoke and lab lose nothing",
        ),
    ]


def optional_checks() -> list[Check]:
    """Parts one can do without: Python modules by `find_spec`, programs by PATH; nothing is
    imported or started."""
    judge = "`speechgpt evaluate` can't judge spoken answers; pip install -e '.[judge]'"
    course = "no graded course labs (a later version); pip install -e '.[course]'"
    fairseq = (
        "no `units --backend fairseq` and no side-by-side tests with the original; make fairseq"
    )
    slurm = "no runs on a cluster (a later version); everything runs on this machine"
    browsers = ["chromium", "chromium-browser", "google-chrome"]
    return [
        _module_check("judge (pocketsphinx)", "pocketsphinx", judge),
        _module_check("nbgrader", "nbgrader", course),
        _module_check("fairseq", "fairseq", fairseq),
        _program_check("Slurm", ["sbatch"], slurm),
        _program_check(
            "Chromium",
            browsers,
            "no browser tests of the notebooks (a later version); users lose nothing",
        ),
    ]


def _module_check(name: str, module: str, cost: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name, False, "not installed", f"the module {module}", cost)
    try:
        found = importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        found = "installed"
    return Check(name, True, found, f"the module {module}", cost)


def _program_check(name: str, programs: list[str], cost: str) -> Check:
    found = next(filter(None, map(shutil.which, programs)), None)
    return Check(name, found is not None, found or "not on PATH", " or ".join(programs), cost)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _memory_gb() -> float:
    """This machine's memory in GB, or less where a container or batch job is granted less (Linux
    control groups v2)."""
    limits = [psutil.virtual_memory().total]
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        group = Path("/sys/fs/cgroup") / own.lstrip("/")
        # A limit on any level above binds as well.
        for folder in [group, *group.parents]:
            limit = folder / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                limits.append(int(text))
    except OSError:  # no Linux, or not allowed to look: the machine's own size stands
        pass
    return min(limits) / 1e9
