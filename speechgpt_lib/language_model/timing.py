"""How fast this machine trains the stages of a recipe: the training loop itself, on random rows.

A step's seconds grow evenly with its tokens and with the layers of the model; embeddings and the
optimizer of the tables come on top.  So four short trainings, of few layers and few tokens, tell
what the whole one takes.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import transformers

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import stages
from speechgpt_lib.language_model.adapters import add_lora
from speechgpt_lib.language_model.planning import Shape, full_memory
from speechgpt_lib.language_model.rows import TokenRow
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.machine import free_memory
from speechgpt_lib.training.devices import resolve_precision
from speechgpt_lib.training.options import TrainingOptions

# Of the short trainings: layers of the shallow ones, of the deep ones (the first that fit), blocks.
# A GPU is busy only from some 16 blocks on: fewer take as long.
SHALLOW, DEEP = 2, (12, 8, 5)
BLOCKS = {"cpu": (1, 3), "cuda": (16, 32)}
STEPS, FIRST = 7, 3  # of each; the first ones prepare kernels and come by their memory


def measure(recipe: Recipe, device: str) -> Callable[[str, int], float]:
    """Times the stages of `recipe` on `device` ("cpu", "cuda"), some ten seconds to minutes each.

    Returns a function: a stage's name and the tokens of a step → seconds of that step in one
    process, in as many parts as the recipe says.  Raises UserError where not even the short
    trainings fit into memory.
    """
    shape, corners, counts = Shape.of(recipe), {}, BLOCKS.get(device, BLOCKS["cpu"])
    tokens, checkpointing = max(counts) * recipe.stage1.block, recipe.stage1.checkpointing
    layers_of = SHALLOW, _deepest(shape, tokens, free_memory(device), checkpointing)
    for name in ("stage1", "stage2", "stage3"):
        block = dict(recipe)[name].block
        for layers, blocks in product(layers_of, counts):
            small = replace(shape, layers=layers), blocks * block
            corners[name, layers, blocks] = seconds_of(recipe, name, *small, device)

    def seconds_per_step(name: str, tokens: int) -> float:
        stage = dict(recipe)[name]
        parts = stage.optimization.accumulation
        blocks = tokens / stage.block / parts
        at = [
            _line(counts, [corners[name, layers, count] for count in counts], blocks)
            for layers in layers_of
        ]
        return parts * _line(layers_of, at, shape.layers)

    return seconds_per_step


def _deepest(shape: Shape, tokens: int, free: int, checkpointing: bool) -> int:
    """The most layers of `DEEP` that can be trained in half of the `free` bytes, or the fewest."""
    shapes = {n: replace(shape, layers=n) for n in DEEP}
    taken = {n: full_memory(s, 1, tokens, "no", checkpointing).total for n, s in shapes.items()}
    return next((n for n in DEEP if 2 * taken[n] < free), DEEP[-1])


def _line(places: tuple[int, int], values: list[float], at: float) -> float:
    """The value at `at` of the line through two values, which noise may not turn downwards."""
    (left, right), (low, high) = places, values
    return low + max(0.0, high - low) * (at - left) / (right - left)


def seconds_of(
    recipe: Recipe,
    name: str,
    shape: Shape,
    tokens: int,
    device: str,
    accumulation: int = 1,
    steps: int = STEPS,
) -> float:
    """Median seconds of a step of stage `name` with a model of `shape` and random weights; `steps`
    are made, of `tokens` in so many parts."""
    stage = dict(recipe)[name]
    precision = resolve_precision(stage.optimization.precision, device)
    at_once = tokens // accumulation, precision, stage.checkpointing
    needed, free = full_memory(shape, 1, *at_once).total, free_memory(device)
    if needed > free:
        found = f"{needed / 1e9:.1f} GB for {shape.layers} layers, and {free / 1e9:.1f} are free"
        raise UserError(f"timing {name} takes {found}: plan with --mfu and --peak-tflops instead")
    model = transformers.LlamaForCausalLM(shape.config()).to(device)
    if name == "stage3":
        first = shape.vocabulary - recipe.units.clusters  # the new tokens learn, too
        new_tokens = range(first, shape.vocabulary) if stage.lora.new_tokens else ()
        add_lora(model, stage.lora, recipe.seed, new_tokens)  # in place
    few = {"steps": steps, "warmup": 1, "log_every": 1, "sharding": "none"}
    few["accumulation"] = accumulation
    optimization = stage.optimization.model_copy(update=few)
    changes = {"tokens_per_batch": tokens, "optimization": optimization}
    rows, seen = random_rows(shape.vocabulary, stage.block, steps * tokens, name == "stage1"), []
    options = TrainingOptions(recipe.seed, device, on_log=seen.append)
    with tempfile.TemporaryDirectory() as work:
        short = stage.model_copy(update=changes)
        stages.fit(model, stages.always(rows), short, Path(work), options)
    took = [b["seconds"] - a["seconds"] for a, b in pairwise(seen)]
    return statistics.median(took[FIRST - 1 :])


def random_rows(vocabulary: int, block: int, tokens: int, all_count: bool) -> list[TokenRow]:
    """Two rows a block, of random ids; of each all ids count, or the answer, its second half."""
    rng, length = random.Random(0), block // 2
    weights = [float(all_count)] * (length // 2) + [1.0] * (length - length // 2)
    ids = range(3, vocabulary)
    return [TokenRow(rng.choices(ids, k=length), weights) for _ in range(tokens // length)]
