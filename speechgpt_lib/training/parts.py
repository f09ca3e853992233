"""Checkpoints in parts: every process writes and reads its own part of each tensor.

    checkpoints/step_00000120/{shard-00001-….safetensors, shard-00002-…, state.json}

For that no process needs the whole model, and a training begun in 8 processes goes on in 2 or 1:
where a part belongs in its tensor stands in its file.  The model that a training begins with is
read so, too, and what it leaves is joined from parts, a tensor at a time.  torch's distributed
checkpoint does the work, in its safetensors format, which runs no code when it is read.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.runs.artefacts import hash_folder, replace, write_failure
from speechgpt_lib.training.checkpoints import remove_old, step_folder, write_state
from speechgpt_lib.training.sharding import is_sharded

Modules = dict[str, nn.Module]
Optimizers = dict[str, torch.optim.Optimizer]


def save_in_parts(
    folder: Path, step: int, modules: Modules, optimizers: Optimizers, keep=2, tokens=0
) -> Path:
    """As `save_checkpoint`, by all processes together; the last act, by the first, makes it valid.

    Raises UserError in every process where one could not write its part.
    """
    rank, target = distributed.get_rank(), step_folder(_of_first(folder), step)
    temporary = target.parent / f".{target.name}.parts" / target.name
    if rank == 0:
        shutil.rmtree(temporary.parent, ignore_errors=True)
        temporary.mkdir(parents=True)
    distributed.barrier()
    try:
        tensors = weights_of(modules) | moments_of(optimizers)
        _write(f"checkpoint {target.name}", temporary, tensors)
        own, found = f"shard-{rank + 1:05d}-", [None] * distributed.get_world_size()
        hashes = hash_folder(temporary, lambda name: name.startswith(own))
        distributed.all_gather_object(found, hashes)
        if rank == 0:
            write_state(temporary, step, tokens, {n: h for part in found for n, h in part.items()})
            replace(temporary, target)
            remove_old(target.parent, keep)
    finally:
        if rank == 0:
            shutil.rmtree(temporary.parent, ignore_errors=True)
    return target


def _of_first(folder: Path) -> Path:
    """The folder that the first process names: results belong there, others have but scratch."""
    named = [str(folder)]
    distributed.broadcast_object_list(named, src=0)
    return Path(named[0])


def _write(what: str, folder: Path, tensors: dict[str, Tensor], **options) -> None:
    from torch.distributed import checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True, **options)
    try:
        dcp.save(tensors, storage_writer=writer)
    except dcp.api.CheckpointException as failed:  # in all processes; it is no `Exception`
        rank, (error, _) = min(failed.failures.items())
        reason = write_failure(error) or one_line(error)
        what = f"process {rank} could not write its part of {what}: {reason}"
        raise UserError(f"{what}; the checkpoint before it is kept") from None


def read_rows(module: nn.Module, folder: Path) -> None:
    """Fill a sharded module from the safetensors in `folder`, whole or in parts: each process reads
    the rows that are its own, so that all together read every file once.

    Raises UserError in every process for a weight that is missing, of another shape, or not finite.
    """
    from torch.distributed import checkpoint as dcp

    tensors = _weights_in(module)
    try:
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    except dcp.api.CheckpointException as failed:
        raise UserError(f"{folder}: {one_line(min(failed.failures.items())[1][0])}") from None
    bad = [name for name, tensor in tensors.items() if not own_part(tensor).isfinite().all()]
    found: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(found, bad)
    if strange := [name for names in found for name in names]:
        raise UserError(f"{folder}: {strange[0]} holds numbers that are not finite")


def write_joined(module: nn.Module, folder: Path, part_bytes: int) -> None:
    """The weights of a sharded module as files of safetensors with an index, as others read them.

    Every process writes its part, the first joins them, a tensor at a time.
    """
    folder, tensors = _of_first(folder), _weights_in(module)
    numbers, size, number = {}, 0, 1
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > part_bytes:
            size, number = 0, number + 1
        size, numbers[name] = size + tensor.nbytes, number
    if distributed.get_rank() == 0:  # what other processes left, perhaps more of them, is not ours
        shutil.rmtree(folder / "sharded", ignore_errors=True)
    distributed.barrier()
    options = {"enable_consolidation": True, "fqn_to_index_mapping": numbers}
    _write(f"the model in {folder}", folder, tensors, **options)
    if distributed.get_rank() == 0:
        shutil.rmtree(folder / "sharded")


def own_part(tensor: Tensor) -> Tensor:
    """Of a sharded tensor what this process has; any other as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def load_in_parts(path: Path, modules: Modules, optimizers: Optimizers) -> None:
    """Restore weights and moments in place; each process reads what is its own, and no more.

    Modules and optimizers may be sharded over any number of processes, or not at all.
    """
    from torch.distributed import checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(path))
    states = _empty_states(reader.read_metadata().state_dict_metadata, optimizers)
    tensors = weights_of(modules)
    tensors |= {
        f"{name}/{index}/{moment}": tensor
        for name, state in states.items()
        for index, moments in state.items()
        for moment, tensor in moments.items()
    }
    alone = not any(map(is_sharded, tensors.values()))
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=alone)
    except dcp.api.CheckpointException as failed:
        raise min(failed.failures.items())[1][0] from None
    for name, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states[name], "param_groups": groups})


def weights_of(modules: Modules) -> dict[str, Tensor]:
    """`module/weight` → the tensor (or this process's part of it); tied ones once."""
    return {
        f"{name}/{part}": tensor
        for name, module in modules.items()
        for part, tensor in _weights_in(module).items()
    }


def _weights_in(module: nn.Module) -> dict[str, Tensor]:
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in module.state_dict().items() if name in own}


def moments_of(optimizers: Optimizers) -> dict[str, Tensor]:
    """`optimizer/number of the parameter/moment` → the tensor (or this process's part of it)."""
    return {
        f"{name}/{index}/{moment}": tensor
        for name, optimizer in optimizers.items()
        for index, moments in optimizer.state_dict()["state"].items()
        for moment, tensor in moments.items()
    }


def _empty_states(saved: dict, optimizers: Optimizers) -> dict[str, dict]:
    """Optimizer → parameter → moment → zeros, shared out as the parameter, for all that is saved;
    those of another shape (a count of steps) are whole in every process."""
    states: dict[str, dict] = {name: defaultdict(dict) for name in optimizers}
    likes = {
        name: [p for group in optimizer.param_groups for p in group["params"]]
        for name, optimizer in optimizers.items()
    }
    for key, facts in saved.items():
        name, *more = key.split("/")
        if len(more) == 2:  # a weight's name has one stroke
            index, moment = int(more[0]), more[1]
            like = likes[name][index].detach()
            if facts.size == like.shape:
                states[name][index][moment] = torch.zeros_like(like)
            else:
                states[name][index][moment] = torch.zeros(facts.size, dtype=facts.properties.dtype)
    return states
