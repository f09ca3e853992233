"""One notebook and its parameters → an executed, trusted copy, without orphans, by papermill.

What papermill leaves open is closed: unknown parameters are errors, signals reach the running cell,
a bad copy never has a good one's name, and the kernel is this interpreter, below `keeper`: started
anew, or forked from a process that has the libraries."""

import contextlib
import io
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner

import speechgpt_lib
from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.notebook.keeper import keep_copy
from speechgpt_lib.surroundings import without

with without("rfc3987_syntax"):  # jsonschema's grammar of addresses: notebooks have none to check
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from nbformat.sign import NotebookNotary

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LOG = "kernel.log"


class Stopped(Exception):
    """A signal asked the run to end; the message is its name."""


class Stop:
    """Turns a signal into an interrupt of the running cell; a second one, or time, ends it all."""

    def __init__(self, grace_s: float = 20.0):  # to save; containers and Slurm allow 10 to 90 s
        self.signal: str | None = None
        self.kernel: AsyncKernelManager | None = None
        self._timer = threading.Timer(grace_s, self._send, [signal.SIGTERM])
        self._timer.daemon = True

    def __call__(self, number: int, frame: object = None) -> None:
        first, self.signal = self.signal is None, signal.Signals(number).name
        self._send(signal.SIGINT if first else signal.SIGTERM)
        if first:
            self._timer.start()

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signal:
            raise Stopped(self.signal)

    def close(self) -> None:
        """Nothing more is sent."""
        self._timer.cancel()

    def _send(self, number: int) -> None:
        """Interrupt the kernel's group, or end the keeper alone, which stops all below it."""
        pid = getattr(self.kernel and self.kernel.provisioner, "pid", None)
        if pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number) if number == signal.SIGINT else os.kill(pid, number)


@contextlib.contextmanager
def stop_on_signals(stop: Any) -> Iterator[Any]:
    """Route the signals that end a run to `stop` (in the main thread only) and close it then."""
    heard = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stop
    finally:
        stop.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(*told: object) -> None: ...


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raise UserError for an undeclared parameter, of which papermill would only warn."""
    known = set(papermill.inspect_notebook(_literal(notebook)))
    if unknown := sorted(set(parameters) - known):
        found = f"{notebook.name}: unknown parameter {', '.join(unknown)}"
        declared = f"its cell tagged `parameters` declares {', '.join(sorted(known)) or 'none'}"
        raise UserError(f"{found}; {declared}; add the missing line there")


def execute(
    notebook: Path,
    target: Path,
    parameters: dict,
    stop: Stop,
    on_cell=_nothing,
    on_line=_nothing,
    threads: int | None = None,
    copies: BaseContext | None = None,
) -> None:
    """Execute `notebook` in its own folder into `target`, which appears when all has gone well.

    `on_cell(number, cells, cell_id)` is told each cell before it starts, `on_line` each line
    printed; the kernel computes with `threads`, and begins as one of `copies`, which a fork server
    makes, or anew.  An interrupted copy stays at `*.partial.ipynb`, a failed one at
    `*.failed.ipynb`.

    Raises UserError (notebook, cell, error) when a cell fails or the kernel dies, or Stopped.
    """
    partial, failed = target.with_suffix(".partial.ipynb"), target.with_suffix(".failed.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    check_parameters(notebook, parameters)
    source = nbformat.read(notebook, as_version=4)
    cell_id, message = "(before the first cell)", None

    def cell_start(cell: Any, cell_index: int) -> None:
        nonlocal cell_id
        cell_id = cell.id if cell.cell_type == "code" else cell_id
        on_cell(cell_index + 1, len(source.cells) + 1, cell.id)
        stop.check()  # an idle kernel ignores what comes between two cells

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="speechgpt-kernel-") as scratch:
        options = {
            "kernel_name": "python3",
            "kernel_manager_class": _kernel_manager_class(Path(scratch), stop, threads, copies),
            "resources": {"metadata": {"path": str(notebook.parent)}},
            "progress_bar": False,
            "coalesce_streams": True,
            "autosave_cell_every": 30,
            "start_timeout": 120,
            "on_cell_start": cell_start,
            "stdout_file": _Lines(on_line),
        }
        try:
            papermill.execute_notebook(source, _literal(partial), parameters, **options)
        except papermill.PapermillExecutionError as error:
            message = f"{error.ename}: {' '.join(str(error.evalue).split())[:600]}"
        except DeadKernelError:
            message = "the kernel died, most often because memory ran out" + _last_words(scratch)
        except OSError as error:
            message = f"{error.strerror or error} ({error.filename or partial}); free the cause"
        except RuntimeError as error:  # "Kernel died before replying to kernel_info" and the like
            message = f"the kernel could not be used: {error}{_last_words(scratch)}"
    stop.check()
    if message:
        if partial.exists():
            os.replace(partial, failed)
        cure = f"(see {failed}; after the cure the same command resumes)"
        raise UserError(f"{notebook.name}, cell {cell_id}: {message} {cure}")
    sign(partial)
    os.replace(partial, target)
    failed.unlink(missing_ok=True)


def _last_words(scratch: str) -> str:
    """The last line the kernel wrote outside of its notebook, as " (it said: …)"."""
    with contextlib.suppress(OSError):
        said = Path(scratch, LOG).read_text(encoding="utf-8", errors="replace").strip()
        return f" (it said: {said.splitlines()[-1].strip()[:300]})" if said else ""
    return ""


def sign(notebook: Path) -> None:
    """Mark a notebook as trusted here: an untrusted one shows no widgets and plays no sound."""
    notary = None
    try:
        notary = NotebookNotary()
        notary.sign(nbformat.read(notebook, as_version=4))
    except Exception as error:  # whatever is wrong with a home, it must not cost the run
        cure = f"to see all of it: `jupyter trust {notebook}`"
        print(f"{notebook.name} is not marked as trusted ({one_line(error)}); {cure}")
    finally:
        with contextlib.suppress(Exception):
            notary.store.close()


class _Lines(io.TextIOBase):
    """A file to papermill: hands on the last line of everything written to it."""

    def __init__(self, on_line: Callable[[str], None]):
        self.on_line = on_line

    def write(self, text: str) -> None:
        lines = [part.strip() for part in text.replace("\r", "\n").split("\n") if part.strip()]
        if lines:
            self.on_line(lines[-1])


class _Copy:
    """A process of multiprocessing, as jupyter_client asks one of subprocess."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess):
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _CopyingProvisioner(LocalProvisioner):
    """Starts a keeper, and so a kernel, as a copy instead of by its command."""

    copies: BaseContext
    threads: int | None

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict:
        _, _, _, log, *arguments = cmd  # python -m speechgpt_lib.notebook.keeper LOG …
        given = (log, arguments, options["env"], options["cwd"], self.threads)
        process = self.copies.Process(target=keep_copy, args=given)
        process.start()
        self.process, self.pid, self.pgid = _Copy(process), process.pid, process.pid
        return self.connection_info


def _kernel_manager_class(
    scratch: Path, stop: Stop, threads: int | None, copies: BaseContext | None
) -> type[AsyncKernelManager]:
    """A manager of kernels of this interpreter, which keeps its files in `scratch`."""
    # The notebook must import the library that its key was computed from, installed or not.
    library = str(Path(speechgpt_lib.__file__).parents[1])
    environment = {
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYTHONPATH": os.pathsep.join([library, os.environ.get("PYTHONPATH", "")]),
        "PYTHONSTARTUP": "",  # code of the user's own, for a shell
        # What the user draws with elsewhere: a file, a window.
        "MATPLOTLIBRC": str(Path(__file__).with_name("figure.mplstyle")),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger warns in every cell's output
    }
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    keeper = ["-m", "speechgpt_lib.notebook.keeper", str(scratch / LOG)]
    command = [sys.executable, *keeper, "-f", "{connection_file}"]
    name = {"display_name": "Python 3 (ipykernel)", "language": "python"}
    # Sockets in a private folder rather than TCP ports, which parallel runs can take from each
    # other.  The system limits such a path to about 104 bytes.
    socket = str(scratch / "socket")
    transport = {"transport": "ipc", "ip": socket} if len(os.fsencode(socket)) < 95 else {}

    class KeptKernelManager(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, env=environment, **name)
        shutdown_wait_time = 60.0  # killing the keeper before it is done would leave orphans

        def __init__(self, **settings: Any):
            super().__init__(connection_file=str(scratch / "kernel.json"), **transport, **settings)
            stop.kernel = self
            if copies:
                self.provisioner = _CopyingProvisioner(kernel_spec=self.kernel_spec, parent=self)
                self.provisioner.copies, self.provisioner.threads = copies, threads

    return KeptKernelManager


def _literal(path: Path) -> str:
    """papermill runs str.format over paths; braces in a folder's name must survive that."""
    return str(path).replace("{", "{{").replace("}", "}}")
