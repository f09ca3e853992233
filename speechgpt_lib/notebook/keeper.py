"""A notebook kernel that leaves nothing behind: it ends with every process it started.

`python -m speechgpt_lib.notebook.keeper LOG_FILE -f CONNECTION_FILE` starts it for the runner and
waits; else children of an interrupted cell, in sessions of their own, would go on training.
`keep_copy` does so in a copy of a process that has the libraries, which saves their import."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection, parent_process, resource_tracker
from pathlib import Path
from typing import BinaryIO

import psutil

from speechgpt_lib.surroundings import clear_variables

KERNEL = "--IPKernelApp.kernel_class=speechgpt_lib.notebook.kernel.KeptKernel"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def keep(log_file: str, *arguments: str) -> int:
    """Run `ipykernel_launcher` until it or the runner ends or SIGTERM comes; stop all descendants.

    Returns the kernel's exit code.
    """
    # Named by the starter: by now the parent may be gone.
    runner = int(os.environ.get("JPY_PARENT_PID") or os.getppid())

    def start(log: BinaryIO) -> int:
        command = [sys.executable, "-m", "ipykernel_launcher", KERNEL, *arguments]
        # The kernel watches the process named here and exits when its parent is another.
        environment = {**os.environ, "JPY_PARENT_PID": str(os.getpid())}
        streams = {"stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, **streams).pid

    return watch(start, log_file, lambda: os.getppid() != runner)


def keep_copy(
    log_file: str,
    arguments: list[str],
    variables: Mapping[str, str],
    folder: str,
    threads: int | None,
) -> None:
    """As `keep`, in a process that multiprocessing forked for the runner: the kernel is forked from
    it in turn, works in `folder` with these environment variables, and computes with `threads`,
    or as many as the libraries chose when they were imported."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    clear_variables()
    runner = parent_process().sentinel

    def start(log: BinaryIO) -> int:
        kernel = os.fork()
        if not kernel:
            be_kernel(log, arguments, threads)
        return kernel

    sys.exit(watch(start, log_file, lambda: bool(connection.wait([runner], 0))))


def be_kernel(log: BinaryIO, arguments: list[str], threads: int | None) -> None:
    """Turn this process, just forked, into the kernel; it does not return."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["JPY_PARENT_PID"] = str(os.getppid())
        # The runner's tracker would complain of what this process leaves: it starts its own.
        resource_tracker._resource_tracker._fd = None
        from ipykernel.kernelapp import launch_new_instance

        if threads:  # the environment was read long ago
            import torch
            from threadpoolctl import threadpool_limits

            torch.set_num_threads(threads)
            threadpool_limits(threads)
        sys.argv = ["ipykernel_launcher", KERNEL, *arguments]
        launch_new_instance(sys.argv[1:])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def watch(start: Callable[[BinaryIO], int], log_file: str, runner_gone: Callable[[], bool]) -> int:
    """Start a kernel and wait until it or the runner ends or SIGTERM comes; stop all descendants.

    What the kernel writes past its notebook (a crash's last words, an echo of its children's
    output) goes to `log_file`, in a folder made for it alone.  Returns the kernel's exit code.
    """
    if sys.platform == "linux":  # descendants whose own parent dies become our children
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
    # An interrupt is meant for the kernel.  A handler, unlike SIG_IGN, is not passed on to it.
    signal.signal(signal.SIGINT, lambda *_: None)
    with open(log_file, "wb") as log:
        kernel = start(log)
    while (code := reap(kernel)) is None and not asked and not runner_gone():
        time.sleep(0.1)
    stop_descendants()
    if runner_gone():  # nobody else is left to remove the kernel's own files
        shutil.rmtree(Path(log_file).parent, ignore_errors=True)
    return 1 if code is None else abs(code)


def reap(kernel: int) -> int | None:
    """Collect every child that ended, adopted ones too; returns the kernel's exit code, if any."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == kernel:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def stop_descendants() -> None:
    """Stop all: politely at first, so that a training can save and stop its workers, then kill."""
    keeper = psutil.Process()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        for process in keeper.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        deadline = time.monotonic() + 5.0
        while keeper.children(recursive=True) and time.monotonic() < deadline:
            reap(kernel=0)
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(keep(*sys.argv[1:]))
