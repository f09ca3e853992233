"""Weights, gradients and moments shared out over all processes (FSDP2), for models that one device can't hold.

Every process keeps a part of each tensor; a block's weights are whole only while it is at work.  Checkpoints hold whole tensors, in the
format of a training in one process: so one that was begun in 8 processes goes on in 2, in 1, or unsharded.  (The first process gathers them
in its main memory, 12 bytes a weight.)

torch's `fully_shard` is used as it is: accelerate's plug-in silently becomes plain data parallelism on a CPU, where this can't be tested.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """A sharded copy of `module` on `device`; the unit that becomes whole at a time is an element of a `ModuleList` (a decoder layer).

    precision: "bf16" computes and gathers in it; sums of gradients, weights and moments stay fp32.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if precision == "bf16"
        else MixedPrecisionPolicy()
    )
    lists = [m for m in module.cpu().modules() if isinstance(m, nn.ModuleList)]
    empty = {id(layers): nn.ModuleList() for layers in lists}
    sharded = copy.deepcopy(module, dict(empty)).to(
        device
    )  # without its layers: those come one by one, so the device never holds all
    for layers in lists:
        for layer in layers:
            empty[id(layers)].append(
                fully_shard(copy.deepcopy(layer).to(device), mesh=mesh, mp_policy=policy)
            )
    return fully_shard(sharded, mesh=mesh, mp_policy=policy)


def whole(value):
    """Sharded tensors at any depth of dictionaries and lists → whole ones on the CPU.  All processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


class Whole:
    """A sharded module or optimizer as a checkpoint sees it: whole tensors.  Made by all processes together, written by one."""

    def __init__(self, sharded: nn.Module | torch.optim.Optimizer):
        self._state = whole(
            dict(_tensors(sharded)) if isinstance(sharded, nn.Module) else sharded.state_dict()
        )

    def state_dict(self) -> dict:
        return self._state


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, tied ones once, and buffers that are saved."""
    saved = module.state_dict().keys()
    yield from ((name, parameter.detach()) for name, parameter in module.named_parameters())
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Whole moments, as an unsharded optimizer saves them, into one whose weights are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        index: {name: _share(t, parameters[index]) for name, t in kept.items()}
        for index, kept in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": own})


def _share(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(
            tensor.to(parameter.device), parameter.device_mesh, parameter.placements
        )
    return tensor


def exchange_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass adds up gradients over processes, or leaves them for a later one."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)


@torch.no_grad()
def copy_back(sharded: nn.Module, module: nn.Module) -> None:
    """The trained weights into the module that was copied by `shard`, in every process."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in _tensors(sharded):
        own[name].copy_(whole(tensor))
