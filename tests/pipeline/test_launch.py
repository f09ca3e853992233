"""Training in two processes on this machine: it equals one process, refuses to train alone, and
leaves nothing behind.

The step that is trained is the text model's, which needs no input but the recipe.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from speechgpt_lib.errors import UserError
from speechgpt_lib.pipeline import launch, worker
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.runs.processes import loopback_only, supervise
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.log import read_metrics
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions

PARTIAL = f"{folder_of('text_model')}.partial"


def new_run(path: Path, steps: int) -> Run:
    """A run whose text model is trained for `steps` steps in fp32, every one of them logged."""
    training = "language_model.optimization"
    changes = {"seed": 3, f"{training}.steps": steps, f"{training}.precision": "no"}
    return Run.create(path, load_recipe("smoke", changes), say=lambda line: None)


def metrics_of(run: Run) -> list[dict]:
    return read_metrics(run.require("text_model").path / "metrics.jsonl")


# --- the launcher itself --------------------------------------------------------------------------
def test_what_a_command_prints_is_said_and_its_exit_code_returned(tmp_path: Path) -> None:
    said: list[str] = []
    code = "import sys; print('first'); print('second'); sys.exit('error: no disk')"
    status = supervise([sys.executable, "-c", code], said.append, tmp_path / "log")
    assert (status, said) == (1, ["first", "second"])
    assert launch._reason(tmp_path / "log") == "no disk"


def test_the_reason_is_a_workers_own_words_before_the_launchers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "[rank1]: RuntimeError: connection closed\nerror: the loss became nan\n"
        "x.ChildFailedError: \n"
    )
    assert launch._reason(log) == "the loss became nan"
    log.write_text("Traceback …\n[rank0]: KeyError: 'x'\nx.ChildFailedError: \n")
    assert launch._reason(log) == "KeyError: 'x'"
    log.write_text("")
    assert launch._reason(log) == "no reason given"


def test_processes_of_one_machine_meet_without_its_name(tmp_path: Path) -> None:
    command = launch.torchrun_command("stage1", new_run(tmp_path / "run", 1), 2)
    given = dict(zip(command, command[1:], strict=False))
    assert given["--local-addr"] == "127.0.0.1" and given["--rdzv-endpoint"] == "127.0.0.1:0"
    assert given["--nnodes"] == "1" and "timeout=60" in given["--rdzv-conf"]
    assert "--standalone" not in command  # it asks for `localhost`, and workers for the host's name
    variables = loopback_only()
    assert set(variables) == {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    (name,) = set(variables.values())
    assert "127.0.0.1" in [one.address for one in psutil.net_if_addrs()[name]]


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid", "256.1.1.1"])
def test_a_first_process_that_is_not_there_is_an_error_in_time(monkeypatch, address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens there
        monkeypatch.setenv("MASTER_ADDR", address)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=rf"process 1 .* at {address}:{port} in 0 s .*firewall"):
            worker.reach_first(1, 0.0)


def test_the_first_process_is_reached_where_it_listens(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(listening.getsockname()[1]))
        worker.reach_first(1, 0.0)


@pytest.mark.parametrize("said", ["Killed\n====\n", "\n…\nKilled\n"])
def test_without_an_error_the_last_words_are_the_reason(tmp_path: Path, said: str) -> None:
    (tmp_path / "log").write_text(said)
    assert launch._reason(tmp_path / "log") == "Killed"


def test_an_interrupt_stops_the_command(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        supervise([sys.executable, "-c", code], interrupted, tmp_path / "log")
    assert not psutil.pid_exists(pids[0])


def test_an_interrupt_amid_the_start_leaves_nothing(
    tmp_path: Path, monkeypatch, hears_interrupts
) -> None:
    started, popen = [], subprocess.Popen

    def interrupted(*arguments, **options):
        started.append(popen(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        supervise([sys.executable, "-c", "import time; time.sleep(600)"], print, tmp_path / "log")
    assert started[0].returncode is not None


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", 1)
    with pytest.raises(UserError, match="unknown step 'stage4'.*stage1, stage2, stage3"):
        launch.train_step(run, "stage4", processes=2)
    with pytest.raises(UserError, match="expanded_model is no training: choose .*, stage1, stage2"):
        launch.train_step(run, "expanded_model", processes=2)
    with pytest.raises(UserError, match="stage1 can't be made in parts.*units, cross_modal_set"):
        launch.launch_steps(run, ["stage1"], shards=slice(0, 1))
    with pytest.raises(UserError, match="--force .*--shards"):
        launch.launch_steps(run, ["units"], force=True, shards=slice(0, 1))


def test_training_alone_is_refused_when_two_are_meant(tmp_path: Path) -> None:
    settings = load_recipe("smoke").stage1.optimization
    modules = {"model": torch.nn.Linear(1, 1)}
    with pytest.raises(UserError, match=r"meant for 2 process.* runs in 1: .*--processes 2"):
        task = Task(modules, lambda *a: None, lambda *a: None)
        train(task, settings, tmp_path, TrainingOptions(seed=0, world_size=2))


def test_a_follower_takes_part_and_keeps_nothing(tmp_path: Path) -> None:
    run, seen = Run.create(tmp_path / "run", load_recipe("smoke"), say=lambda line: None), []

    def make(work: Path) -> dict:
        seen.append((work / "checkpoints" / "step_1" / "state").read_text())
        (work / "result").write_text("thrown away")
        (work / "checkpoints" / "step_1" / "state").unlink()
        return {"loss": 1.0}

    def interrupted(work: Path) -> None:
        (work / "checkpoints" / "step_1").mkdir(parents=True)
        (work / "checkpoints" / "step_1" / "state").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step("05_part/model", interrupted, settings={})
    followed = run.as_worker(rank=1, world_size=2).step("05_part/model", make, settings={})
    assert seen == ["half way"] and followed.metrics == {"loss": 1.0}
    partial = run.path / "05_part" / "model.partial"
    assert (partial / "checkpoints" / "step_1" / "state").read_text() == "half way" and not (
        partial / "result"
    ).exists()
    assert run.find("05_part/model") is None


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_a_log_is_followed_row_by_row_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    work, told = tmp_path_factory.mktemp("work"), []
    lines = "".join(json.dumps({"step": k, "loss": 1 / k}) + "\n" for k in range(1, 15))
    (work / "metrics.jsonl").write_text(
        '{"step": 99, "loss": 5.0}\n'
    )  # of an earlier attempt with other settings
    (work / "key").write_text("old")
    follower = launch.Follower(told.append, work)
    follower.look()
    assert not told
    (work / "metrics.jsonl").write_text("")
    (work / "key").write_text("new")
    os.utime(work / "key", ns=(10**18, 10**18))
    with open(work / "metrics.jsonl", "a") as log:
        while lines:
            size = cuts.pop() if cuts else len(lines)
            log.write(lines[:size])
            log.flush()
            lines = lines[size:]
            follower.look()
    follower.look()
    assert [row["step"] for row in told] == list(range(1, 15))


# --- processes that train together ----------------------------------------------------------------
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = (new_run(tmp_path / name, steps=6) for name in ("one", "two"))
    launch.train_step(one, "text_model")
    told: list[dict] = []
    launch.train_step(two, "text_model", processes=2, on_log=told.append)
    assert told == metrics_of(two)
    assert [row["step"] for row in metrics_of(two)] == [1, 2, 3, 4, 5, 6]
    for alone, together in zip(metrics_of(one), metrics_of(two), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], abs=1e-4)
    ours, theirs = (
        load_file(run.require("text_model").path / "model.safetensors") for run in (one, two)
    )
    # Adam divides by the size of a gradient: where that is all rounding, so is the direction of the
    # update.
    close = [
        torch.isclose(ours[name], theirs[name], atol=1e-4).float().mean().item() for name in ours
    ]
    assert ours.keys() == theirs.keys() and min(close) > 0.99
    assert two.find("text_model").key == one.find("text_model").key
    assert not list(two.path.glob("*/*.partial"))


@pytest.mark.slow
def test_a_worker_without_its_fellow_trains_nothing(tmp_path: Path, root: Path) -> None:
    run = new_run(tmp_path / "run", steps=2)
    command = [
        sys.executable,
        "-m",
        "speechgpt_lib.pipeline.worker",
        "text_model",
        str(run.path),
        "2",
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.startswith(
        "error: this training was meant for 2 process(es) but runs in 1"
    )
    assert run.find("text_model") is None


def training_tree(run: Run, root: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A program that trains in two processes, and what stands below it (torchrun, two workers) once
    they have begun."""
    launcher = "from speechgpt_lib.pipeline.launch import train_step"
    imports = f"from speechgpt_lib.runs.run import Run; {launcher}"
    program = f"{imports}; train_step(Run.open({str(run.path)!r}), 'text_model', processes=2)"
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )
    log = run.path / PARTIAL / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_metrics(log)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len([p for p in below if "speechgpt_lib.pipeline.worker" in p.cmdline()]) == 3, (
        "a launcher and two workers"
    )
    return process, below


def hear_interrupts() -> None:
    """Whoever runs the tests in the background may have made them deaf to Ctrl-C, which children
    take over."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_no_orphan(
    tmp_path: Path, root: Path, number: signal.Signals
) -> None:
    run = new_run(tmp_path / "run", steps=100_000)
    process, below = training_tree(run, root)
    process.send_signal(number)
    _, errors = process.communicate(timeout=90)
    assert process.returncode in (-number, 1), errors.decode()[
        -2000:
    ]  # 1: a library took over how Ctrl-C ends the interpreter
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
    saved = [p.name for p in (run.path / PARTIAL / "checkpoints").glob("step_*")]
    assert len(saved) == 1 and int(saved[0].removeprefix("step_")) >= 3


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_orphan(tmp_path: Path, root: Path) -> None:
    process, below = training_tree(new_run(tmp_path / "run", steps=100_000), root)
    next(p for p in below if "torch.distributed.run" in p.cmdline()).kill()
    _, errors = process.communicate(timeout=90)
    assert (
        process.returncode == 1
        and b"UserError: text_model in 2 processes ended with exit code -9: " in errors
    )
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
