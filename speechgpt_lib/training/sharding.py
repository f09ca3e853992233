"""Weights, gradients and moments shared out over all processes (FSDP2), for large models.

Every process keeps a part of each tensor; a block's weights are whole only while it is at work.
Checkpoints hold whole tensors, in the format of a training in one process: so one that was begun in
8 processes goes on in 2, in 1, or unsharded.  (The first process gathers them in its main memory,
12 bytes a weight.)

torch's `fully_shard` is used as it is: accelerate's plug-in silently becomes plain data parallelism
on a CPU, where this can't be tested.
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
    """A sharded copy of `module` on `device`.

    The unit that becomes whole at a time is an element of a `ModuleList` (a decoder layer).
    `precision` "bf16" computes and gathers in it; gradient sums, weights and moments stay fp32.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    bf16 = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    policy = MixedPrecisionPolicy(**(bf16 if precision == "bf16" else {}))
    lists = [m for m in module.cpu().modules() if isinstance(m, nn.ModuleList)]
    empty = {id(layers): nn.ModuleList() for layers in lists}
    # Without its layers: those come one by one, so that the device never holds all.
    sharded = copy.deepcopy(module, dict(empty)).to(device)
    for layers in lists:
        for layer in layers:
            own = copy.deepcopy(layer).to(device)
            empty[id(layers)].append(fully_shard(own, mesh=mesh, mp_policy=policy))
    return fully_shard(sharded, mesh=mesh, mp_policy=policy)


def whole(value):
    """Sharded tensors in dictionaries and lists → whole ones on the CPU, by all processes."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


class Whole:
    """A sharded module or optimizer as a checkpoint sees it, made by all processes together."""

    def __init__(self, sharded: nn.Module | torch.optim.Optimizer):
        is_module = isinstance(sharded, nn.Module)
        self._state = whole(dict(_tensors(sharded)) if is_module else sharded.state_dict())

    def state_dict(self) -> dict:
        """Whole tensors."""
        return self._state


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, tied ones once, and buffers that are saved."""
    saved = module.state_dict().keys()
    yield from ((name, parameter.detach()) for name, parameter in module.named_parameters())
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load whole moments, as an unsharded optimizer saves them, sharing them out where needed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        index: {name: _share(t, parameters[index]) for name, t in kept.items()}
        for index, kept in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": own})


def _share(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor


def exchange_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass adds up gradients over processes, or leaves them for later."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)


@torch.no_grad()
def copy_back(sharded: nn.Module, module: nn.Module) -> None:
    """Copy the trained weights into the module that was given to `shard`, in every process."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in _tensors(sharded):
        own[name].copy_(whole(tensor))
