"""What all tests share: one thread a process, no network, and the optional folder of reference material."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: tests run side by side, one on each core, and their threads would get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Libraries that would look a name up on a model hub fail at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        type=Path,
        default=ROOT.parent / "shared",
        metavar="DIR",
        help="folder of reference material that some tests compare with (default: `shared` beside the clone)",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the clone."""
    return ROOT


@pytest.fixture(scope="session")
def reference(request: pytest.FixtureRequest) -> Path:
    """The folder of reference material; tests that take it are skipped where it is absent."""
    folder: Path = request.config.getoption("--reference")
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder}; name its folder: pytest --reference DIR")
    return folder.resolve()
