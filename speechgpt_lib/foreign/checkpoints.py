"""A foreign PyTorch checkpoint → tensors and plain values, without running any code in it.

fairseq's files pickle objects of its own (dictionaries, configurations) beside the tensors.
PyTorch's reader of weights alone takes them once every class named has an inert stand-in; a name
from a package that such files have no business with, which somebody meant to be called, is refused.
"""

import argparse
import contextlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from speechgpt_lib.errors import UserError, one_line, reading, reads

INFLATED, MOST_SETTINGS = 4, 100_000  # greatest ratio of unpacked bytes; values in settings
PACKAGES = "fairseq argparse omegaconf hydra numpy typing enum collections _codecs pathlib".split()
# Files from before PyTorch 1.6 don't list what they name.
KNOWN_NAMES = """
    fairseq.data.dictionary.Dictionary argparse.Namespace omegaconf.dictconfig.DictConfig
    omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata omegaconf.base.Metadata
    omegaconf.nodes.AnyNode typing.Any numpy.core.multiarray.scalar numpy.dtype
""".split()


STARTS = {  # of files → their kinds
    b"\x93NUMPY": "npy",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P": "torch",  # before PyTorch 1.6
    b"PK": "torch",
    b"\x80": "pickle",
    b"GGUF": "gguf",
    b"\x89HDF": "hdf5",
    b"RIFF": "sound",
}


class Stub:
    """An object of a class that is not here: `arguments` of its call, `state` and its items."""

    name = "?"

    def __new__(cls, *arguments: Any, **keywords: Any) -> "Stub":
        made = object.__new__(cls)
        made.__dict__.update(keywords, arguments=arguments)
        return made

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                self.__dict__.update({str(key): value for key, value in part.items()})
        self.state = state

    def ignore(self, *items: Any) -> None:
        """Takes what a pickle puts into a list, set or dictionary of its own class."""

    append = extend = add = __setitem__ = ignore


def stub_class(name: str) -> type[Stub]:
    """A class of stand-ins for `name`, a dotted path."""
    return type(name.rsplit(".", 1)[-1], (Stub,), {"name": name})


def plain(value: Any, left: list[int] | None = None) -> Any:
    """Namespaces of argparse and containers of OmegaConf, at any depth, as plain Python values.

    Raises UserError for more than `MOST_SETTINGS`: what contains itself has no end.
    """
    left = left or [MOST_SETTINGS]
    left[0] -= 1
    if left[0] < 1:
        raise UserError(f"the checkpoint describes more than {MOST_SETTINGS} settings")
    if isinstance(value, Stub | argparse.Namespace):  # a real one where PyTorch may read it
        known = vars(value)
        for inside in ("_content", "_val"):  # an OmegaConf container, an OmegaConf node
            if inside in known:
                return plain(known[inside], left)
        value = {k: item for k, item in known.items() if k not in ("arguments", "state")}
    if isinstance(value, dict):
        return {key: plain(item, left) for key, item in value.items()}
    return [plain(item, left) for item in value] if isinstance(value, list | tuple) else value


def load_torch_checkpoint(path: Path | str, mapped: bool = False) -> dict:
    """The dictionary in a `.pt` file, as `load_torch` reads it.  Raises UserError for another."""
    if not isinstance(loaded := load_torch(path, mapped), dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, expected a dictionary")
    return loaded


def load_torch(path: Path | str, mapped: bool = False) -> Any:
    """What is in a `.pt` file, tensors on the CPU; objects of foreign classes are `Stub`s.

    `mapped`: tensors stay in the file until they are looked at, where its format allows that.

    Raises UserError for no such file, no PyTorch checkpoint, a damaged one, or one that names
    something such a file has no business with.
    """
    path = Path(path).expanduser()
    if (kind := file_kind(path)) not in ("torch", "pickle"):
        raise UserError(f"{path} is a file of kind {kind}, expected a PyTorch checkpoint")
    with reading(path, what="is no whole PyTorch checkpoint"):
        names = named_classes(path) if zipfile.is_zipfile(path) else KNOWN_NAMES
        try:
            stubs = torch.serialization.safe_globals([(stub_class(name), name) for name in names])
            how = {"map_location": "cpu", "weights_only": True}
            if mapped and is_mappable(path):
                with stubs:
                    return torch.load(path, mmap=True, **how)
            with stubs, open(path, "rb") as file:  # of a path, PyTorch would believe the suffix
                loaded = torch.load(file, **how)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            why = f"it asks to run {asked[1]}" if asked else one_line(error)
            raise UserError(f"{path} was not read: {why}; expected a fairseq checkpoint") from None
    return loaded


def is_mappable(path: Path) -> bool:
    """Whether tensors can stay in a PyTorch file: not in one from before PyTorch 1.6, and of
    another suffix PyTorch would believe the suffix."""
    return zipfile.is_zipfile(path) and path.suffix in (".bin", ".pt", ".pth")


@reads("is no whole PyTorch checkpoint")
def named_classes(path: Path) -> list[str]:
    """What a zipped checkpoint asks for beside tensors, found without running it.

    Raises UserError for a name from a package that no checkpoint of fairseq needs, or for a file
    that unpacks to far more than it is: PyTorch compresses nothing.
    """
    check_unpacked(path)
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if strange := [name for name in names if name.split(".")[0] not in PACKAGES]:
        reason = f"it asks to run {strange[0]}, which no checkpoint of fairseq does"
        raise UserError(f"{path} was not read: {reason}; don't trust it")
    return names


def check_unpacked(path: Path) -> None:
    """Refuse a zip archive that unpacks to far more than it is."""
    with zipfile.ZipFile(path) as archive:
        inflated, size = sum(i.file_size for i in archive.infolist()), path.stat().st_size
    if inflated > INFLATED * size + (1 << 20):
        raise UserError(f"{path} of {size} bytes inflates to {inflated}: don't trust it")


def file_kind(path: Path) -> str:
    """What the first bytes of a file say it is, whatever its name: npy, npz, torch, safetensors, …

    "pickle" where they say nothing.  Raises UserError as `check_is_no_text`.
    """
    head = check_is_no_text(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # else it is none
        if any(name.endswith(".npy") for name in archive.namelist()):
            return "npz"
    return next((kind for start, kind in STARTS.items() if head.startswith(start)), "pickle")


def check_is_no_text(path: Path) -> bytes:
    """Refuses what often lies in place of a large file: nothing, an error page, a git pointer.

    Returns its first bytes.
    """
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
    return head
