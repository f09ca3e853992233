"""What every benchmark shares: arms measured in turn, medians, the last line as a JSON object."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def measure(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each arm.

    Every arm runs once unmeasured; then all take turns, so that a noisy minute meets all alike.
    """
    for arm in arms.values():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def device_name(device: str = "cpu") -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    found = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{found[0] if found else platform.processor()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def finish(
    name: str, ratios: dict[str, float], parity: dict, device: str, out: Path | None = None
) -> None:
    """Print the result as one JSON line, and write it to `out` as well."""
    versions = {
        package: importlib.metadata.version(package)
        for package in ("torch", "transformers", "numpy")
    }
    result = {
        "name": name,
        "ratios": {key: round(value, 3) for key, value in ratios.items()},
        "parity": parity,
        "device": device,
        "versions": versions | {"python": platform.python_version()},
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
