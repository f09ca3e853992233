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

from speechgpt_lib.runs.machine import cpu_facts
from speechgpt_lib.training.devices import matmul_peak


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
    """The GPU's name; or the CPU's, with family, model, vector extensions and threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    cpu = cpu_facts()
    kind = f"family {cpu['family']} model {cpu['model']}, {' '.join(cpu['extensions'])}"
    return f"{cpu['name']} ({kind}), {torch.get_num_threads()} threads"


def peaks(device: str = "cpu") -> dict[str, float]:
    """GFLOP/s of matrix products in fp32 and bf16, measured here: a ratio means little without."""
    found = {"fp32": matmul_peak(device, "no"), "bf16": matmul_peak(device, "bf16")}
    return {name: round(value / 1e9, 1) for name, value in found.items()}


def finish(
    name: str,
    ratios: dict[str, float],
    parity: dict,
    device: str = "cpu",
    out: Path | None = None,
    **facts: object,
) -> None:
    """Print the result as one JSON line, and write it to `out` as well.

    device: "cpu" or "cuda"; facts: what else there is to say, such as the share of the peak.
    """
    packages = ("torch", "transformers", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    result = {
        "name": name,
        "ratios": {key: round(value, 3) for key, value in ratios.items()},
        "parity": parity,
        "device": device_name(device),
        "versions": versions | {"python": platform.python_version()},
        "matmul_peak_gflops": peaks(device),
        **facts,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
