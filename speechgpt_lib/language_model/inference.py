"""A trained model, ready to answer: in as few bytes a weight as the recipe says, on one device or
spread over several GPUs; never twice in memory, and refused beforehand where it doesn't fit."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from accelerate import dispatch_model, infer_auto_device_map

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.adapters import store_as
from speechgpt_lib.language_model.families import read_config
from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.language_model.planning import BYTES, Shape
from speechgpt_lib.language_model.vocabulary import UnitVocabulary
from speechgpt_lib.language_model.weights import empty_model
from speechgpt_lib.runs.machine import free_memory

CACHE = 0.9  # share of the free memory that weights may take; keys and values need the rest
COARSE = ("int8", "4bit")


def load_to_answer(
    folder: Path, weights: str = "fp32", device: str = "cpu"
) -> tuple[transformers.PreTrainedModel, UnitVocabulary]:
    """The model of a step, its weights stored as `weights` says: fp32, bf16, int8 or 4bit.

    On several GPUs, where it is too large for one, its layers are shared out.  int8 and 4bit are
    read in bf16, in main memory, and come to the device a layer at a time.

    Raises UserError where memory won't do, before anything is loaded.
    """
    shape = Shape.of_config(read_config(folder))
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    spread = {} if weights in COARSE else spread_over(folder, dtype, device)
    if not spread:
        check_memory(weight_bytes(shape, weights), device, folder)
    if weights in COARSE:
        check_memory(weight_bytes(shape, "bf16"), "cpu", folder)
        model, vocabulary = load_model(folder, dtype)
        store_as(model, weights, device)
        return model, vocabulary

    def place(name: str) -> torch.device | str | int:
        parts = name.split(".")
        modules = (".".join(parts[:k]) for k in range(len(parts), -1, -1))
        return next((spread[module] for module in modules if module in spread), device)

    model, vocabulary = load_model(folder, dtype, place)
    return (dispatch_model(model, spread) if spread else model), vocabulary


def weight_bytes(shape: Shape, weights: str) -> int:
    """What a model's weights take as `store_as` stores them."""
    layers = int(shape.layers * shape.layer_parameters * BYTES[weights])
    return layers + (4 if weights == "fp32" else 2) * (shape.table_parameters + shape.hidden_size)


def check_memory(needed: int, device: str, folder: Path) -> None:
    """Raises UserError where `device` has less memory left than a model of `needed` bytes takes."""
    free = free_memory(device)
    if needed > CACHE * free:
        cure = "set inference.weights to bf16, int8 or 4bit, free memory, or take another device"
        raise UserError(
            f"the model in {folder} takes {needed / 1e9:.1f} GB and what it computes some more, on "
            f"{device} {free / 1e9:.1f} GB are free: {cure}"
        )


def spread_over(folder: Path, dtype: torch.dtype, device: str) -> dict[str, int]:
    """Module → GPU, where a model is too large for the first one and there are others; else {}."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    shape, size = Shape.of_config(read_config(folder)), torch.finfo(dtype).bits // 8
    free = {k: int(CACHE * free_memory(f"cuda:{k}")) for k in range(count)}
    if count < 2 or size * shape.parameters <= free[0]:
        return {}
    return device_map(empty_model(read_config(folder)), dtype, free)


def device_map(
    model: transformers.PreTrainedModel, dtype: torch.dtype, free: dict[int, int]
) -> dict[str, int]:
    """Module → device, each filled in turn and no layer cut; UserError where all are too small."""
    layer = type(model.model.layers[0]).__name__
    model.tie_weights()
    options = {"max_memory": free | {"cpu": 0}, "no_split_module_classes": [layer]}
    found = infer_auto_device_map(model, dtype=dtype, **options)
    if any(place in ("cpu", "disk") for place in found.values()):
        there = ", ".join(f"{size / 1e9:.1f}" for size in free.values())
        needed = model.num_parameters() * torch.finfo(dtype).bits / 8e9
        cure = "set inference.weights to int8 or 4bit, or take more GPUs"
        raise UserError(f"the model takes {needed:.1f} GB, the GPUs hold {there} GB: {cure}")
    return found
