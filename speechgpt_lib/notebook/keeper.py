"""A notebook kernel that leaves nothing behind: it ends with every process it started.

`python -m speechgpt_lib.notebook.keeper LOG_FILE -f CONNECTION_FILE` stands between the notebook
runner and the kernel.  It starts the kernel with its own interpreter and waits.  When the kernel
ends, when the keeper is asked to stop (SIGTERM) or when the runner is gone (even by SIGKILL), every
descendant is stopped: first politely, so that a training child can save and stop its workers, then
by force. Without it the children of an interrupted cell, which often live in sessions of their own,
would go on training.
"""

from __future__ import annotations

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

PATIENCE_S = 5.0  # between asking a process to stop and killing it
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def keep(log_file: str, *arguments: str) -> int:
    """Run `ipykernel_launcher` until it, the runner or this process ends; returns its exit code.

    What the kernel writes past its notebook (a crash's last words, an echo of its children's
    output) goes to `log_file`, in a folder made for this kernel alone.
    """
    # Named by the starter: by now the parent may be gone.
    runner = int(os.environ.get("JPY_PARENT_PID") or os.getppid())
    adopt_orphans()
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
    # An interrupt is meant for the kernel.  A handler, unlike SIG_IGN, is not passed on to it.
    signal.signal(signal.SIGINT, lambda *_: None)
    command = [sys.executable, "-m", "ipykernel_launcher", *arguments]
    # The kernel watches the process named here and exits when its parent is another.
    environment = {**os.environ, "JPY_PARENT_PID": str(os.getpid())}
    with open(log_file, "wb") as log:
        kernel = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    code = None
    while code is None and not asked and os.getppid() == runner:
        code = reap(kernel.pid)
        time.sleep(0.1 if code is None else 0)
    stop_descendants()
    if os.getppid() != runner:  # nobody else is left to remove the kernel's own files
        shutil.rmtree(Path(log_file).parent, ignore_errors=True)
    return 1 if code is None else abs(code)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies (Linux only), to find them."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(kernel: int) -> int | None:
    """Collect every child that ended, adopted ones too; returns the kernel's exit code, if any."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return code
            if pid == kernel:
                code = os.waitstatus_to_exitcode(status)
    return code


def stop_descendants(patience_s: float = PATIENCE_S) -> None:
    """Ask all descendants to stop, wait, and kill those that are left, until there are none."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        left = [p for p in psutil.Process().children(recursive=True) if alive(p)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        deadline = time.monotonic() + patience_s
        while any(alive(p) for p in left) and time.monotonic() < deadline:
            time.sleep(0.05)
            reap(kernel=0)
    reap(kernel=0)


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    sys.exit(keep(*sys.argv[1:]))
