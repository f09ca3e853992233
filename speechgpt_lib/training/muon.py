"""Muon (Jordan 2024): steps of a matrix whose singular values are all near one.

torch has it for one matrix at a time and in bf16.  In a small model the matrices are many: here
all of one shape go through the iteration together, and in fp32 on a processor that would only
emulate bf16 (a hundred times slower).
"""

from __future__ import annotations

import functools
from collections import defaultdict

import torch
from torch import Tensor

from speechgpt_lib.training.devices import resolve_precision

# Each is the odd polynomial of degree five that comes nearest to one on what those before it make
# of [0.005, 1]; after four, all of that lies within 0.09 of one (Amsel et al. 2025, arXiv
# 2505.16932).  Five times Newton and Schulz's with fixed coefficients, as torch has it, costs more
# and comes within 0.35.
POLYNOMIALS = (
    (8.2987, -24.4305, 18.0903),
    (3.9152, -2.9211, 0.5592),
    (3.1746, -2.3804, 0.4978),
    (2.1895, -1.5672, 0.4079),
)


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, whose state and settings it keeps (but `ns_`…), with another `step`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[min(matrix.shape), max(matrix.shape)].append(matrix)
            for matrices in alike.values():
                self._move(matrices, group)

    def _move(self, matrices: list[Tensor], group: dict) -> None:
        updates = []
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
            update = matrix.grad.lerp(momentum, group["momentum"])  # Nesterov's look ahead
            updates.append(update.T if matrix.shape[0] > matrix.shape[1] else update)
        # (matrices, rows, columns), rows ≤ columns
        stacked = torch.stack(updates).to(dtype_on(updates[0].device.type))
        for matrix, update in zip(matrices, orthogonal(stacked, group["eps"]), strict=True):
            update = update.T if matrix.shape[0] > matrix.shape[1] else update
            rate = group["lr"] * 0.2 * max(matrix.shape) ** 0.5  # as long a step as AdamW's
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


@functools.cache
def dtype_on(device: str) -> torch.dtype:
    """bfloat16 where the device computes in it itself; the iteration needs no more."""
    return torch.bfloat16 if resolve_precision("auto", device) == "bf16" else torch.float32


def orthogonal(x: Tensor, eps: float = 1e-7) -> Tensor:
    """(matrices, rows, columns) → the same shape, singular values brought near one.

    An odd polynomial of a matrix acts on its singular values alone.
    """
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for a, b, c in POLYNOMIALS:
        square = x @ x.mT  # (matrices, rows, rows)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
