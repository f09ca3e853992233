"""Real kernels: each test takes a second or two.  Nothing that a notebook starts may outlive its
run."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver, resource_tracker

import nbformat
import psutil
import pytest
from nbformat.sign import NotebookNotary

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook import execution
from speechgpt_lib.notebook.execution import (
    Stop,
    Stopped,
    check_parameters,
    execute,
    stop_on_signals,
)

# A cell whose child, in a session of its own like a training process, outlives it unless somebody
# looks for it.
START_CHILD = """
import subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.{handler}); "
code += "print(1, flush=True); time.sleep(3600)"
options = {{"start_new_session": True, "stdout": subprocess.PIPE}}
child = subprocess.Popen([sys.executable, "-c", code], **options)
child.stdout.readline()
print("child", child.pid, flush=True)
"""
DRIVER = """
import multiprocessing, sys
from pathlib import Path
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.execution import Stop, Stopped, execute, stop_on_signals
with stop_on_signals(Stop()) as stop:
    try:
        paths = map(Path, sys.argv[1:3])
        how = {"copies": multiprocessing.get_context("forkserver")} if sys.argv[3:] else {}
        execute(*paths, {}, stop, on_line=lambda line: print(line, flush=True), **how)
    except (Stopped, UserError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def outputs(path):
    """Everything the cells of an executed notebook printed."""
    notebook = nbformat.read(path, as_version=4)
    return "".join(
        o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs
    )


@pytest.fixture(params=["anew", "as a copy"])
def how(request):
    """How a kernel is started; the server that copies itself is there before."""
    if request.param == "anew":
        yield {}
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speechgpt_lib.runs.frozen"])
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    yield {"copies": context}
    forkserver._forkserver._stop()


def start_driver(notebook, target, root, how):
    """Execute a notebook in another process; returns it and its notebook's child once that runs."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(notebook), str(target), *how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        # As a terminal would start it, whatever the signals of the process that runs the tests are
        # set to.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in driver.stdout:
        if line.startswith("child "):
            tree = psutil.Process(driver.pid).children(recursive=True)
            child = psutil.Process(int(line.split()[1]))
            # Keeper, kernel, child; before them a server to copy, and its tracker of resources.
            assert child in tree and len(tree) == 3 + 2 * len(how)
            return driver, tree
    raise AssertionError(driver.stderr.read())


def test_executed_copy_is_whole_trusted_and_made_by_this_interpreter(
    write_notebook, tmp_path, monkeypatch, how
):
    # A kernel called python3 that belongs to another environment, and cannot even start.
    shadow = tmp_path / "jupyter/kernels/python3/kernel.json"
    shadow.parent.mkdir(parents=True)
    shadow.write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook = write_notebook(
        "00_x.ipynb",
        ("where", "import os, sys; print(sys.executable, os.getcwd(), recipe)"),
        ("progress", "for i in range(50): print(f'step {i}', end='\\r', flush=True)"),
    )
    target = tmp_path / "run {0}" / "00_x.ipynb"  # papermill would fill in the braces
    cells, lines = [], []
    execute(
        notebook,
        target,
        {"recipe": "smoke"},
        Stop(),
        lambda *cell: cells.append(cell),
        lines.append,
        **how,
    )
    assert outputs(target).rstrip() == f"{sys.executable} {notebook.parent} smoke\nstep 49"
    assert cells[0] == (1, 5, "title") and cells[-1] == (5, 5, "progress")
    assert lines[0].endswith("smoke") and lines[-1] == "step 49"
    assert [
        len(c.outputs) for c in nbformat.read(target, as_version=4).cells if c.cell_type == "code"
    ] == [0, 0, 1, 1]
    assert NotebookNotary().check_signature(nbformat.read(target, as_version=4))
    assert sorted(p.name for p in target.parent.iterdir()) == ["00_x.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, None])
def test_a_kernel_has_the_threads_it_is_given(write_notebook, tmp_path, monkeypatch, threads, how):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    say = "import os, torch; print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads() == 1)"
    target = tmp_path / "00_x.ipynb"
    execute(write_notebook("00_x.ipynb", ("say", say)), target, {}, Stop(), threads=threads, **how)
    assert outputs(target).split() == [str(threads or 3), str(threads == 1)]


# What a user may have set for a shell of their own: a variable, the text of its file, or none.
AROUND = {
    "a style that needs LaTeX": ("MATPLOTLIBRC", "text.usetex: True\nfigure.figsize: 1, 1\n"),
    "code at the start": ("PYTHONSTARTUP", "import builtins; builtins.print = None\n"),
    "a window to draw in": ("MPLBACKEND", None),
    "a shell's own start": ("IPYTHONDIR", None),
    "training elsewhere": ("ACCELERATE_USE_DEEPSPEED", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", AROUND)
def test_what_surrounds_a_kernel_has_no_say_in_its_cells(
    write_notebook, tmp_path, monkeypatch, kind, how
):
    variable, text = AROUND[kind]
    if variable == "IPYTHONDIR":
        startup = tmp_path / "profile_default" / "startup" / "00.py"
        startup.parent.mkdir(parents=True)
        startup.write_text("import builtins; builtins.print = None")
    (tmp_path / "file").write_text(text or "")
    value = str(tmp_path / "file") if text else {"MPLBACKEND": "TkAgg", "IPYTHONDIR": str(tmp_path)}
    monkeypatch.setenv(variable, value if text else value.get(variable, "true"))
    draw = """
import os
import matplotlib.pyplot as plt
from speechgpt_lib.notebook.figure import show_figure, use_house_style
use_house_style()
fig, ax = plt.subplots()
ax.set_title("$x_0$")
print(fig.get_size_inches(), os.environ.get("ACCELERATE_USE_DEEPSPEED"))
show_figure(fig, "a title", "Figure 1.")
"""
    target = tmp_path / "00_x.ipynb"
    execute(write_notebook("00_x.ipynb", ("draw", draw)), target, {}, Stop(), **how)
    assert outputs(target).splitlines()[-1] == "[7.  3.2] None"


def test_failed_cell_is_named_and_its_notebook_kept(write_notebook, tmp_path, how):
    notebook = write_notebook(
        "03_x.ipynb",
        ("fine", "print('made')"),
        (
            "load-audio",
            "from speechgpt_lib.errors import UserError\nraise UserError('no audio\\nhere')",
        ),
        ("never", "print('never')"),
    )
    with pytest.raises(UserError) as caught:
        execute(notebook, tmp_path / "03_x.ipynb", {}, Stop(), **how)
    message = str(caught.value)
    assert message.startswith("03_x.ipynb, cell load-audio: UserError: no audio here (see ")
    assert "\n" not in message
    assert not (tmp_path / "03_x.ipynb").exists() and not (tmp_path / "03_x.partial.ipynb").exists()
    assert outputs(tmp_path / "03_x.failed.ipynb") == "made\n"


@pytest.mark.slow
def test_a_dead_kernel_is_named_with_its_last_words(write_notebook, tmp_path, how):
    notebook = write_notebook(
        "01_x.ipynb", ("crash", "import os; os.write(2, b'out of memory\\n'); os._exit(9)")
    )
    with pytest.raises(
        UserError, match=r"01_x.ipynb, cell crash: the kernel died.*\(it said: out of memory\)"
    ):
        execute(notebook, tmp_path / "01_x.ipynb", {}, Stop(), **how)


def test_unknown_parameters_are_refused(write_notebook):
    notebook = write_notebook("02_x.ipynb", parameters='recipe = "lab"\nrun_dir = "x"')
    check_parameters(notebook, {"recipe": "smoke"})
    with pytest.raises(
        UserError, match="02_x.ipynb: unknown parameter force, seed; .* declares recipe, run_dir"
    ):
        check_parameters(notebook, {"recipe": "smoke", "seed": 1, "force": True})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_everything_and_keeps_the_partial_copy(
    write_notebook, tmp_path, root, name, how
):
    child = START_CHILD.format(handler="SIG_DFL")
    wait = "try:\n    time.sleep(3600)\nfinally:\n    print('checkpoint written', flush=True)"
    notebook = write_notebook(
        "01_x.ipynb", ("first", "print('made')"), ("start", child), ("wait", wait), ("no", "1/0")
    )
    driver, tree = start_driver(notebook, tmp_path / "01_x.ipynb", root, how)
    driver.send_signal(getattr(signal, name))
    _, errors = driver.communicate(timeout=30)
    assert driver.returncode == 1 and errors.strip() == f"Stopped: {name}"
    assert psutil.wait_procs(tree, timeout=5)[1] == []
    assert not (tmp_path / "01_x.ipynb").exists()
    assert "made" in outputs(tmp_path / "01_x.partial.ipynb")


@pytest.mark.slow
def test_a_killed_runner_leaves_no_process(write_notebook, tmp_path, root, monkeypatch, how):
    child = START_CHILD.format(handler="SIG_IGN")
    notebook = write_notebook("01_x.ipynb", ("start", child), ("wait", "time.sleep(3600)"))
    # Sockets lie there, whose paths must be short.
    scratch = tempfile.TemporaryDirectory(dir="/tmp")
    monkeypatch.setenv("TMPDIR", scratch.name)
    driver, tree = start_driver(notebook, tmp_path / "01_x.ipynb", root, how)
    driver.kill()
    driver.communicate(timeout=30)
    assert psutil.wait_procs(tree, timeout=15)[1] == []
    # Where the server's socket was Python itself leaves a folder, as of any process it can't close.
    left = [name for name in os.listdir(scratch.name) if "pymp-" not in name]
    scratch.cleanup()
    assert left == []


@pytest.mark.slow
def test_a_cell_that_will_not_be_interrupted_is_ended(write_notebook, tmp_path, how):
    stubborn = (
        "while True:\n    try:\n        print('started', flush=True)\n        time.sleep(3600)\n"
    )
    stubborn += "    except KeyboardInterrupt:\n        pass"
    notebook = write_notebook("01_x.ipynb", ("stubborn", "import time\n" + stubborn))
    before = set(
        psutil.Process().children(recursive=True)
    )  # such as multiprocessing's resource tracker, from other tests
    with stop_on_signals(Stop(grace_s=0.2)) as stop, pytest.raises(Stopped, match="SIGUSR2"):
        execute(
            notebook,
            tmp_path / "01_x.ipynb",
            {},
            stop,
            on_line=lambda line: os.kill(os.getpid(), signal.SIGUSR2),
            **how,
        )
    assert set(psutil.Process().children(recursive=True)) <= before


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(Stop()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_orphans_of_an_ended_notebook_are_stopped(write_notebook, tmp_path, how):
    # The child's parent is gone before the notebook ends, so it is nobody's child any more.
    start = (
        "import subprocess, sys\n"
        "code = 'import subprocess, sys; c = [sys.executable, \"-c\", '\n"
        "code += '\"import time; time.sleep(3600)\"]; '\n"
        "code += 'print(subprocess.Popen(c, start_new_session=True, stdout=-3, stderr=-3).pid)'\n"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)"
    )
    notebook = write_notebook("01_x.ipynb", ("start", start))
    execute(notebook, tmp_path / "01_x.ipynb", {}, Stop(), **how)
    pid = int(outputs(tmp_path / "01_x.ipynb"))
    assert not psutil.pid_exists(pid)


def test_children_are_the_keepers_who_does_not_wait_for_deaf_ones(write_notebook, tmp_path, how):
    """multiprocessing's tracker of resources ignores SIGTERM; ipykernel itself would wait for it
    for half a minute, and its base class has no other way to be told not to."""
    start = (
        "import multiprocessing, os\nfrom ipykernel.kernelbase import Kernel\n"
        "worker = multiprocessing.get_context('spawn').Process(target=print)\n"
        "worker.start()\nworker.join()\nkernel = get_ipython().kernel\n"
        "own = type(kernel)._progressively_terminate_all_children\n"
        "print(own is not Kernel._progressively_terminate_all_children)\n"
        "print(*[child.pid for child in kernel._process_children()])"
    )
    notebook = write_notebook("01_x.ipynb", ("start", start))
    execute(notebook, tmp_path / "01_x.ipynb", {}, Stop(), **how)
    overridden, *children = outputs(tmp_path / "01_x.ipynb").split()
    assert overridden == "True" and children and not any(map(psutil.pid_exists, map(int, children)))


def test_a_full_disk_is_one_line(write_notebook, tmp_path):
    notebook = write_notebook("01_x.ipynb", ("fill", "print('x' * 5000)"))
    before = set(psutil.Process().children(recursive=True))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4000, limits[1])
    )  # bytes a file: what follows fails as on a full disk
    try:
        with pytest.raises(UserError, match="01_x.ipynb, cell fill: File too large"):
            execute(notebook, tmp_path / "01_x.ipynb", {}, Stop())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not (tmp_path / "01_x.ipynb").exists()


@pytest.mark.parametrize("error", [PermissionError, RuntimeError, KeyError, NotADirectoryError])
def test_a_home_without_signatures_costs_a_word_and_no_run(
    write_notebook, monkeypatch, capsys, error
):
    def broken(*arguments, **options):
        raise error("home")

    notebook = write_notebook("00_x.ipynb")
    monkeypatch.setattr(execution, "NotebookNotary", broken)
    execution.sign(notebook)
    said = capsys.readouterr().out
    assert "not marked as trusted" in said and "jupyter trust" in said and said.count("\n") == 1
