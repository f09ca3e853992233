"""What surrounds the library, set right at its import: the system, the environment, the home.

What changes a result comes from the recipe alone, so variables by which other libraries choose how
to compute are cleared, and that is said.  Those that only say where or how loudly stay.
"""

import contextlib
import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_CHOOSES = re.compile(
    r"(ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG|PET|TORCHDYNAMO|TORCHINDUCTOR|SKLEARN"
    r"|ONEDNN|DNNL|ATEN|NVIDIA_TF32|MKL_(CBWR|ENABLE|DEBUG_CPU|VML)|NPY_(DISABLE|ENABLE)"
    r"|CT2_(FORCE|USE)|OPENBLAS_CORETYPE|TORCH_(ALLOW|BLAS|COMPILE|CUDNN|FORCE|MKLDNN)"
    r"|PYTORCH_(JIT|TUNABLEOP|MPS_(FAST|PREFER)))(_|$).*"
)
_STAYS = re.compile(r".*(CACHE|DEBUG_MODE|LOG|VERBOSE|THREADS).*")
_AS_IF_UNSET = ("", "0", "no", "false", "disabled")  # worth no word: `accelerate launch` sets many


def settle() -> None:
    """Set all of it right; ends the process, with one line, on a system that can't run this."""
    if sys.platform == "win32":
        cure = "on Windows install WSL (`wsl --install`) and work inside it"
        sys.exit(f"error: speechgpt_lib runs on Linux and macOS; {cure}")
    clear_variables()
    if not os.path.isabs(os.path.expanduser("~")):  # else a folder named ~ would be made here
        _kept.append(tempfile.TemporaryDirectory(prefix="speechgpt-home-"))
        os.environ["HOME"] = _kept[0].name


def clear_variables() -> None:
    """Remove the variables by which others choose how to compute; those that chose are named."""
    found = {n: v for n, v in os.environ.items() if _CHOOSES.fullmatch(n) and not _STAYS.match(n)}
    for name in found:
        del os.environ[name]
    said = [f"{n}={v[:40]}" for n, v in sorted(found.items()) if v.lower() not in _AS_IF_UNSET]
    if said and os.environ.get("RANK", "0") == "0":
        what = "results depend on the recipe alone"
        print(f"ignored: {', '.join(said)}: {what}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Meanwhile a module, which others can do without, is not found: its import takes a second."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Meanwhile Python looks for no garbage, and never again among what was imported by its end: it
    would go through some 400,000 objects, which stay, again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


_kept: list[tempfile.TemporaryDirectory] = []
