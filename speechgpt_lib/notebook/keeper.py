"""A notebook kernel that leaves nothing behind: it ends with every process it started.

`python -m speechgpt_lib.notebook.keeper LOG_FILE -f CONNECTION_FILE` starts it for the runner and
waits; else children of an interrupted cell, in sessions of their own, would go on training."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

KERNEL = "speechgpt_lib.notebook.kernel.KeptKernel"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def keep(log_file: str, *arguments: str) -> int:
    """Run `ipykernel_launcher` until it or the runner ends or SIGTERM comes; stop all descendants.

    What the kernel writes past its notebook (a crash's last words, an echo of its children's
    output) goes to `log_file`, in a folder made for it alone.  Returns the kernel's exit code.
    """
    # Named by the starter: by now the parent may be gone.
    runner = int(os.environ.get("JPY_PARENT_PID") or os.getppid())
    if sys.platform == "linux":  # descendants whose own parent dies become our children
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
    # An interrupt is meant for the kernel.  A handler, unlike SIG_IGN, is not passed on to it.
    signal.signal(signal.SIGINT, lambda *_: None)
    kernel = f"--IPKernelApp.kernel_class={KERNEL}"
    command = [sys.executable, "-m", "ipykernel_launcher", kernel, *arguments]
    # The kernel watches the process named here and exits when its parent is another.
    environment = {**os.environ, "JPY_PARENT_PID": str(os.getpid())}
    with open(log_file, "wb") as log:
        kernel = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    while (code := reap(kernel.pid)) is None and not asked and os.getppid() == runner:
        time.sleep(0.1)
    stop_descendants()
    if os.getppid() != runner:  # nobody else is left to remove the kernel's own files
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
