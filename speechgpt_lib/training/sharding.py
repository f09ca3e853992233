"""Weights, gradients and moments shared out over all processes (FSDP2), for large models.

Every process keeps a part of each tensor; a block's weights are whole only while it is at work.
Weights are read, and checkpoints and results written, in parts (`parts.py`): so no process ever
holds the model whole, and a training begun in 8 processes goes on in 2, in 1, or unsharded.
torch's `fully_shard` is used as it is: accelerate's plug-in silently becomes plain data parallelism
on a CPU.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def is_sharded(part: nn.Module | torch.Tensor) -> bool:
    """Whether a module is FSDP2's, or a tensor is shared out (a DTensor).  By what they can do:
    their classes take a second to import, which most who ask don't need."""
    return hasattr(part, "unshard" if isinstance(part, nn.Module) else "full_tensor")


def shard(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """A sharded copy of `module` on `device`; of an empty module (on the device "meta") one with
    arbitrary weights, to be read afterwards (`parts.read_rows`).

    The unit that becomes whole at a time is an element of a `ModuleList` (a decoder layer).
    `precision` "bf16" computes and gathers in it; gradient sums, weights and moments stay fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    bf16 = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    policy = MixedPrecisionPolicy(**(bf16 if precision == "bf16" else {}))
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    empty = {id(layers): nn.ModuleList() for layers in lists}
    # Without its layers: those come one by one, so that the device never holds all.
    sharded = _placed(copy.deepcopy(module, dict(empty)), device)
    for layers in lists:
        for layer in layers:
            own = _placed(copy.deepcopy(layer), device)
            empty[id(layers)].append(fully_shard(own, mesh=mesh, mp_policy=policy))
    return fully_shard(sharded, mesh=mesh, mp_policy=policy)


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on `device`; what is empty gets memory there, tied weights the same."""
    new: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, weight in owner.named_parameters(recurse=False):
            if weight.is_meta:
                if id(weight) not in new:
                    values = torch.empty_like(weight, device=device)
                    new[id(weight)] = nn.Parameter(values, requires_grad=weight.requires_grad)
                owner.register_parameter(name, new[id(weight)])
    return module.to(device)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor → the whole one on the CPU, by all processes; any other as it is."""
    return tensor.full_tensor().cpu() if is_sharded(tensor) else tensor


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load whole moments, as an unsharded optimizer saves them, sharing them out where needed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in state["state"].items():
        like = parameters[index]
        for name, moment in kept.items() if is_sharded(like) else ():
            if moment.shape == like.shape:
                kept[name] = _shared_as(like, moment.to(like.device))
    optimizer.load_state_dict(state)


def _shared_as(like: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moment, like.device_mesh, like.placements)


def copy_back(sharded: dict[str, nn.Module], modules: dict[str, nn.Module]) -> None:
    """Copy the trained weights into the modules that were given to `shard`, in every process."""
    for name, module in modules.items():
        own = module.state_dict()
        for part, tensor in sharded[name].state_dict().items():
            own[part].copy_(whole(tensor))
