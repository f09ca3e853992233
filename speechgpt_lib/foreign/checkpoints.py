"""A foreign PyTorch checkpoint → tensors and plain values, without running any code in it.

fairseq's files pickle objects of its own (dictionaries, namespaces, configurations) beside the
tensors.  PyTorch's reader of weights alone takes such a file once every class it names has an inert
stand-in.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.foreign.stubs import stub_class

KNOWN_PACKAGES = set(
    "fairseq argparse omegaconf hydra numpy typing enum collections _codecs pathlib".split()
)
# Files from before PyTorch 1.6 don't list what they name.
KNOWN_NAMES = (
    "fairseq.data.dictionary.Dictionary",
    "argparse.Namespace",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
)


def load_torch_checkpoint(path: Path | str) -> dict:
    """The dictionary in a `.pt` file, tensors on the CPU; objects of foreign classes are `Stub`s.

    Raises UserError for no such file, no PyTorch checkpoint, a damaged one, or one that names
    something such a file has no business with.
    """
    path = Path(path).expanduser()
    check_is_no_text(path)
    names = named_classes(path) if zipfile.is_zipfile(path) else KNOWN_NAMES
    try:
        with torch.serialization.safe_globals([(stub_class(name), name) for name in names]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks to run {asked[1]}" if asked else one_line(error)
        raise UserError(f"{path} was not read: {reason}; expected a fairseq checkpoint") from None
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise _damaged(path, error) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, expected a dictionary")
    return loaded


def named_classes(path: Path) -> list[str]:
    """What a zipped checkpoint asks for beside tensors, found without running it.

    Raises UserError for a name from a package that no checkpoint of fairseq needs.
    """
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise _damaged(path, error) from None
    if strange := [name for name in names if name.split(".")[0] not in KNOWN_PACKAGES]:
        reason = f"it asks to run {strange[0]}, which no checkpoint of fairseq does"
        raise UserError(f"{path} was not read: {reason}; don't trust it")
    return names


def check_is_no_text(path: Path) -> None:
    """Refuses what often lies in place of a large file: nothing, an error page, a git pointer."""
    if not path.is_file():
        raise UserError(f"no file at {path}: give the path of the published file")
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise UserError(f"{path} is empty: get it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer to a large file: fetch it with `git lfs pull`")
    if head.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, not the file: the download failed, get it again")


def _damaged(path: Path, error: Exception) -> UserError:
    reason = one_line(error)
    return UserError(f"{path} is no whole PyTorch checkpoint ({reason}): get it again")
