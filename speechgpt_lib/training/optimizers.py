"""Which optimizer moves which weights, and at what learning rate: AdamW, Muon, warm-up, decay."""

from __future__ import annotations

import math

import torch
from torch import nn

from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.muon import Muon

MATRICES = " matrices"  # what follows a phase's name in the name of the optimizer of its matrices


def make_optimizers(modules: list[nn.Module], settings: Optimization) -> dict:
    """AdamW for all weights; with `matrix_learning_rate`, Muon for the matrices between layers.

    Muon (Jordan 2024; its rate scaled as in Liu et al. 2025, arXiv 2502.16982) makes the update of
    a matrix orthogonal, so that directions of small gradients are learned as fast as those of large
    ones.  All matrices move, and they grow, so it wants far more weight decay than AdamW.  Returns
    optimizers by what follows the phase's name ("" or `MATRICES`).
    """
    layers = [m for module in modules for m in module.modules()]
    tables = {id(p) for m in layers if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices, others = [], []
    for name, p in (named for module in modules for named in module.named_parameters()):
        between_layers = p.ndim == 2 and id(p) not in tables and "lm_head" not in name
        if p.requires_grad:
            (matrices if settings.matrix_learning_rate and between_layers else others).append(p)
    rate, optimizers = settings.learning_rate, {}
    if others:
        adamw = {"betas": settings.betas, "weight_decay": settings.weight_decay, "fused": True}
        optimizers[""] = torch.optim.AdamW([{"params": others, "scale": 1.0}], rate, **adamw)
    if matrices:
        settled = {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
        group = {"params": matrices, "scale": settings.matrix_learning_rate / rate}
        optimizers[MATRICES] = Muon([group], rate, settings.matrix_weight_decay, **settled)
    return optimizers


def learning_rate_at(step: int, settings: Optimization) -> float:
    """Linear warm-up, plateau, then a straight line or half a cosine down to `floor`.

    `step` counts from 0.
    """
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup))
    progress = step / settings.steps
    if progress > settings.hold:
        left = (1 - progress) / (1 - settings.hold)
        if settings.schedule == "cosine":
            left = settings.floor + (1 - settings.floor) * (1 - math.cos(math.pi * left)) / 2
        rate *= max(settings.floor, left)
    return rate
