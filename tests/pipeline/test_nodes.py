"""Several nodes, played by several launchers on this machine: each starts its own process, and all
of them train as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechgpt_lib.pipeline import launch
from speechgpt_lib.runs.names import folder_of
from tests.pipeline.test_launch import metrics_of, new_run

CONFIGURATIONS = Path(__file__).parents[2] / "speechgpt_lib" / "recipes" / "accelerate"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(commands: list[list[str]], root: Path) -> list[subprocess.CompletedProcess]:
    """Start all commands at once and wait for all."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            c, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for c in commands
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(p.args, p.returncode, *said)
        for p, said in zip(started, outputs, strict=True)
    ]


def accelerate(configuration: str, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGURATIONS / configuration),
        *options,
    ]


def torchrun(rank: int, port: int) -> list[str]:
    where = [
        "--nnodes",
        "2",
        "--node_rank",
        str(rank),
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(port),
    ]
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc_per_node", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["eight_gpus.yaml", "nodes.yaml", "torchrun"])
def test_every_launcher_makes_one_group(tmp_path: Path, root: Path, launcher: str) -> None:
    """Two processes, on one machine or one on each of two: the losses of a single one, step by
    step, and one result."""
    alone, run = new_run(tmp_path / "alone", steps=4), new_run(tmp_path / "run", steps=4)
    launch.train_step(alone, "text_model")
    worker = ["-m", "speechgpt_lib.pipeline.worker", "text_model", str(run.path), "2"]
    port = free_port()
    if launcher == "eight_gpus.yaml":
        commands = [accelerate(launcher, "--num_processes", "2", "--main_process_port", str(port))]
    elif launcher == "nodes.yaml":
        sizes = ["--num_processes", "2", "--main_process_port", str(port)]
        commands = [
            accelerate(
                launcher, *sizes, "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"
            )
            for rank in (0, 1)
        ]
    else:
        commands = [torchrun(rank, port) for rank in (0, 1)]
    done = together([[*command, *worker] for command in commands], root)
    assert [each.returncode for each in done] == [0] * len(commands), done[0].stderr[-2000:]
    assert [row["loss"] for row in metrics_of(run)] == pytest.approx(
        [row["loss"] for row in metrics_of(alone)], abs=1e-5
    )
    assert run.find("text_model").key == alone.find("text_model").key
    assert sorted(p.name for p in (run.path / folder_of("text_model")).parent.iterdir()) == [
        "text_model"
    ], "followers leave nothing"


@pytest.mark.slow
def test_a_launch_that_would_train_alone_is_refused(tmp_path: Path, root: Path) -> None:
    """`accelerate launch --cpu` passes over every launcher that makes a group; the worker has been
    told better."""
    run = new_run(tmp_path / "run", steps=2)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    (done,) = together(
        [[*command, "-m", "speechgpt_lib.pipeline.worker", "text_model", str(run.path), "2"]], root
    )
    assert done.returncode != 0 and "meant for 2 process(es) but runs in 1" in done.stderr
    assert run.find("text_model") is None


def test_configurations_are_what_their_names_say() -> None:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGURATIONS.iterdir()}
    processes = {
        name: (values["num_machines"], values["num_processes"]) for name, values in found.items()
    }
    assert processes == {"one_gpu": (1, 1), "eight_gpus": (1, 8), "nodes": (2, 16)}
    for values in found.values():
        assert values["mixed_precision"] == "no", "precision is the recipe's"
