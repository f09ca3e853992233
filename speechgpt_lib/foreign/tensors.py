"""The tensors of a foreign checkpoint: found, and compared with those that a model expects."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from speechgpt_lib.errors import UserError

LAYERS, SIZE = 1000, 1 << 24  # the greatest numbers in a model's settings


def checkpoint_tensors(loaded: dict, key: str, where: Path) -> dict[str, torch.Tensor]:
    """The float32 tensors that a checkpoint keeps under `key`, or nothing but which it holds.

    Raises UserError where there is anything else, or nothing.
    """
    found = loaded.get(key, loaded)
    values = list(found.values()) if isinstance(found, Mapping) else []
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        holds = ", ".join(map(str, list(loaded)[:5]))
        raise UserError(f"{where} holds {holds}: expected a `{key}` with tensors only")
    for name, tensor in found.items():
        check_tensor_bytes(tensor, f"{where}: {name}")
    return {str(name): tensor.float() for name, tensor in found.items()}


def check_tensor_bytes(tensor: torch.Tensor, name: str) -> None:
    """Refuse a tensor that repeats its bytes, which takes any memory when it is copied."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{name} has shape {tuple(tensor.shape)}, but not the bytes")


def check_sizes(settings: object, where: Path | str, name: str = "a size") -> None:
    """Refuse settings of a model with a number that no model has, before any memory is taken."""
    if isinstance(settings, Mapping | list | tuple):
        named = settings.items() if isinstance(settings, Mapping) else ((name, v) for v in settings)
        for key, value in named:
            if not re.search("theta|optimization", str(key)):
                check_sizes(value, where, str(key))
    elif isinstance(settings, int) and abs(settings) > (LAYERS if "layers" in name else SIZE):
        raise UserError(f"{where} says {name} is {settings:.4g}: no model has that, get it again")


def check_described(make: Callable[[], torch.nn.Module], *files: Path) -> None:
    """Refuse settings of a module with more weights than the files that are there can hold, before
    any memory is taken: a weight takes a byte at least."""
    sizes = [file.stat().st_size for file in files if file.is_file()]
    with torch.random.fork_rng(devices=()), torch.device("meta"):  # no draw is taken from others
        described = sum(weight.numel() for weight in make().parameters()) if sizes else 0
    if described > sum(sizes) + (1 << 20):
        what = f"settings describe {described} weights, in {sum(sizes)} bytes can't be so many"
        raise UserError(f"{files[0].parent}: {what}: files of two models?")


def check_tensors(found: dict, expected: dict, where: Path) -> None:
    """Refuse tensors, by name, that differ in name or shape from the `expected` ones."""
    ask = "are all files of the same model?"
    if missing := sorted(expected.keys() - found.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{where} lacks {missing[0]}{more}: is the file whole, and {ask}")
    if strange := sorted(found.keys() - expected.keys()):
        raise UserError(f"{where} holds {strange[0]}, for which there is no place: {ask}")
    for name, tensor in expected.items():
        if (shape := tuple(found[name].shape)) != (wanted := tuple(tensor.shape)):
            raise UserError(f"{where}: {name} has shape {shape}, expected {wanted}: {ask}")
    check_finite(found, where)


def check_finite(tensors: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Refuse tensors, by name, that hold NaN or infinite numbers."""
    for name, tensor in tensors.items():
        finite = (tensor.float() if tensor.itemsize == 1 else tensor).isfinite()
        if not finite.all():
            bad = tensor.numel() - int(finite.sum())
            found = f"{bad} of {tensor.numel()} numbers of {name} are NaN or infinite"
            raise UserError(f"{where}: {found}: get the file again")
