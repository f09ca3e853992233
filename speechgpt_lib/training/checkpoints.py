"""Training state on disk: whole or absent, hashed, and safe to read.

    checkpoints/step_00000120/{model.safetensors, optimizers.pt, state.json}

`state.json` holds the step, the tokens read and the SHA-256 of the other files, so that a damaged
checkpoint is recognised and the one before it used.  Those of sharded trainings are in `parts.py`.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.tensors import check_finite
from speechgpt_lib.runs.artefacts import atomic_path, hash_folder, read_json, write_json


def save_checkpoint(folder: Path, step: int, modules, moments, keep=2, tokens=0) -> Path:
    """Write modules and states of optimizers after `step` steps and `tokens` tokens, by name.

    Only the newest `keep` checkpoints stay.
    """
    target = step_folder(folder, step)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for name, module in modules.items():
            save_module(module, temporary / f"{name}.safetensors")
        torch.save(moments, temporary / "optimizers.pt")
        write_state(temporary, step, tokens, hash_folder(temporary))
    remove_old(folder, keep)
    return target


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is."""
    return folder / f"step_{step:08d}"


def write_state(path: Path, step: int, tokens: int, files: dict[str, dict]) -> None:
    """What makes a folder of files, with their hashes, a checkpoint."""
    write_json(path / "state.json", {"step": step, "tokens": tokens, "files": files})


def remove_old(folder: Path, keep: int) -> None:
    """Leave only the newest `keep` checkpoints."""
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, after `step` optimizer steps and `tokens` tokens."""

    path: Path
    step: int
    tokens: int
    in_parts: bool = False

    def load_modules(self, modules: dict) -> int:
        """Restore weights in place; returns the step."""
        for name, module in modules.items():
            load_module(module, self.path / f"{name}.safetensors")
        return self.step

    def load_moments(self) -> dict[str, dict]:
        """The states of optimizers, by name, on the CPU."""
        path = self.path / "optimizers.pt"
        with reading(path, "delete its folder: training goes on from the one before it"):
            return torch.load(path, weights_only=True, map_location="cpu")


def find_checkpoint(
    folder: Path, share: slice = slice(None), agree: Callable[[bool], bool] = bool
) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None; warns of damaged ones and skips them.

    Processes that `share` the work each look at some of the files, and `agree` whether all are
    whole.
    """
    for path in sorted(folder.glob("step_*"), reverse=True):
        damage = None
        try:
            with reading(path):
                found = _read_state(path, share)
        except UserError as error:
            damage = str(error)
        if agree(damage is None):
            return found
        damage = damage or "so another process found"
        warning = f"checkpoint {path} is damaged ({damage}); using the one before it"
        warnings.warn(warning, stacklevel=2)
    return None


def _read_state(path: Path, share: slice) -> Checkpoint:
    """A checkpoint, if its state makes sense and its files (those of `share`) are as written."""
    state = read_json(path / "state.json")
    step, tokens, files = int(state["step"]), int(state.get("tokens", 0)), state["files"]
    names = sorted(p.name for p in path.iterdir() if p.name != "state.json")
    own = names[share]
    found = hash_folder(path, own.__contains__)
    if names != sorted(files) or found != {name: files[name] for name in own}:
        raise UserError("its files do not match the hashes in state.json")
    if step != int(path.name.removeprefix("step_")) or tokens < 0:
        raise ValueError(f"state.json is of step {step}")
    return Checkpoint(path, step, tokens, any(name.startswith("shard-") for name in names))


def save_module(module: torch.nn.Module, path: Path) -> None:
    """The parameters of `module` as safetensors; tied tensors are written once."""
    tensors, seen = {}, set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().contiguous().cpu()
    save_file(tensors, path)


def load_module(module: torch.nn.Module, path: Path) -> None:
    """Load safetensors written by `save_module` into a module of the same shape.

    Raises UserError naming the first tensor that is missing, unexpected or of another shape.
    """
    if not Path(path).is_file():
        raise UserError(f"weights {path} are missing; run the step that makes them again")
    cure = "delete its folder, run it again"
    with reading(path, cure, "is not a readable safetensors file"):
        tensors = load_file(path)
    own = module.state_dict()
    there = {own[name].data_ptr() for name in tensors if name in own}  # tied tensors share a place
    missing = [n for n in own if n not in tensors and own[n].data_ptr() not in there]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        found = f"missing {missing[:3]}, unexpected {unexpected[:3]}"
        raise UserError(f"{path} does not fit this model: {found}")
    for name, tensor in tensors.items():
        found, wanted = tuple(tensor.shape), tuple(own[name].shape)
        if found != wanted:
            raise UserError(f"{path}: {name} has shape {found}, this model expects {wanted}")
    check_finite(tensors, path)
    with reading(path, cure, "does not fit this model"):
        module.load_state_dict(tensors, strict=False)
