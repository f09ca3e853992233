"""What lies about a machine changes no result: variables, homes, systems."""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.surroundings import importing, without

CLEARED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "PET_NNODES": "4",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "PYTORCH_MPS_FAST_MATH": "1",
    "PYTORCH_TUNABLEOP_ENABLED": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "SKLEARN_ASSUME_FINITE": "1",
}
KEPT = {
    "ACCELERATE_LOG_LEVEL": "info",
    "TORCHINDUCTOR_CACHE_DIR": "cache",
    "TORCHELASTIC_RUN_ID": "x",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_LOGS": "dynamo",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_VERBOSE": "0",
}


def imported(root: Path, variables: dict, before: str = "", after: str = ""):
    """A new Python that imports the package in an environment of these variables alone."""
    code = "\n".join(("import os, sys", before, "import speechgpt_lib", after))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)} | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_variables_by_which_others_choose_how_to_compute_are_cleared_and_named(root: Path) -> None:
    names = [*CLEARED, *KEPT]
    done = imported(root, CLEARED | KEPT, after=f"print(*[n for n in {names} if n in os.environ])")
    assert done.stdout.split() == list(KEPT)
    assert all(f"{name}={value}" in done.stderr for name, value in CLEARED.items())
    assert "the recipe alone" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["", "0", "no", "NO", "False"])
def test_what_is_as_if_unset_costs_no_word(root: Path, value: str) -> None:
    assert not imported(root, {"ACCELERATE_DYNAMO_BACKEND": value}).stderr


def test_other_processes_of_a_group_say_it_once(root: Path) -> None:
    assert not imported(root, {"ACCELERATE_DYNAMO_BACKEND": "eager", "RANK": "1"}).stderr


@pytest.mark.parametrize("home", [None, "relative", "~"])
def test_without_a_home_a_temporary_one_stands_in(root: Path, home: str | None) -> None:
    nobody = "import pwd; pwd.getpwuid = lambda uid: {}[uid]"  # as in many containers
    show = "from pathlib import Path; print(Path.home().is_dir(), Path.home())"
    done = imported(root, {} if home is None else {"HOME": home}, nobody, show)
    there, path = done.stdout.split()
    assert there == "True" and Path(path).is_absolute() and not Path(path).exists()


@pytest.mark.parametrize("home", ["/", "/nonexistent", "/dev/null"])
def test_a_home_that_is_there_or_named_is_left_alone(root: Path, home: str) -> None:
    done = imported(root, {"HOME": home}, after="print(os.environ['HOME'])")
    assert (done.stdout.strip(), done.stderr) == (home, "")


def test_windows_is_told_what_to_do_in_one_line(root: Path) -> None:
    done = imported(root, {}, before="sys.platform = 'win32'")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "WSL" in done.stderr and "macOS" in done.stderr


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()


def test_nothing_that_linux_alone_has_is_used_unguarded(root: Path) -> None:
    linux_only = {"sched_getaffinity", "sched_setaffinity", "sched_getscheduler", "pidfd_open"}
    linux_only |= {
        "memfd_create",
        "posix_fadvise",
        "posix_fallocate",
        "eventfd",
        "splice",
        "unshare",
    }
    linux_only |= {"prctl", "O_TMPFILE", "copy_file_range", "process_cpu_count", "sigtimedwait"}
    found = []
    for path in sorted((root / "speechgpt_lib").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = [n.attr for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)]
        guarded = "hasattr(os" in text or 'sys.platform == "linux"' in text
        found += [f"{path.name}: {name}" for name in names if name in linux_only and not guarded]
    assert not found


def test_a_module_is_left_out_for_a_while_and_found_again(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    with without("colorsys"):  # who has it, keeps it
        assert sys.modules["colorsys"] is colorsys
    assert sys.modules["colorsys"] is colorsys


def test_what_was_imported_is_never_looked_through_for_garbage():
    gc.collect()
    before, kept = gc.get_freeze_count(), [[k] for k in range(1000)]
    with importing():
        assert not gc.isenabled()
        with importing():  # as one module imports another
            pass
        assert not gc.isenabled() and gc.get_freeze_count() == before
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(kept)


def test_notebooks_are_executed_without_a_grammar_of_addresses():
    code = "import sys, speechgpt_lib.notebook.execution; print('rfc3987_syntax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
