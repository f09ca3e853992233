"""Does `speechgpt plan` tell the truth, with `--measure` of seconds and without it of memory?

    python benchmarks/plan.py [--recipe small] [--blocks 4]
    python benchmarks/plan.py --device cuda --gpu-memory 80 [--steps 40] [--set KEY=VALUE]

`--measure` times few layers and extrapolates.  Here each stage of the recipe is then trained for
some steps with all its layers, in the same loop, on this machine; what was foretold is printed
beside it.  The weights are random: they cost the same.  The ratio is foretold seconds over measured
ones.

On a GPU a step has the recipe's tokens, in as many parts as the plan says for `--gpu-memory`.
There are more figures then: tokens a second, MFU against the matmul peak of this run, and planned
bytes over the peak of what torch allocated.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import finish
from speechgpt_lib.language_model.planning import Shape, StagePlan, plan
from speechgpt_lib.language_model.timing import STEPS, measure, seconds_of
from speechgpt_lib.recipes.loading import load_recipe, parse_override
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.training.devices import matmul_peak, resolve_precision

STAGES = ("stage1", "stage2", "stage3")
SMOLLM2 = transformers.LlamaConfig(  # what SmolLM2-135M's config.json says of its sizes
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    tie_word_embeddings=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--blocks", type=int, default=4, help="of a step, on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GB")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each whole training")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--skip-foretelling", action="store_true", help="memory and speed alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = {"device": arguments.device} | dict(map(parse_override, arguments.changes))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.device != "cpu" and arguments.recipe == "small":
            SMOLLM2.save_pretrained(folder)
            changes["imports.text_model"] = folder
        compare(load_recipe(arguments.recipe, changes), arguments)


def compare(recipe: Recipe, arguments: argparse.Namespace) -> None:
    device, shape = arguments.device, Shape.of(recipe)
    planned = {s.name: s for s in plan(recipe, 1, arguments.gpu_memory)["stages"]}
    skip = arguments.skip_foretelling
    foretold = (lambda name, tokens: math.nan) if skip else measure(recipe, device)
    ratios, seconds, gpu = {}, {}, {}
    for name in arguments.stages:
        tokens, parts = arguments.blocks * dict(recipe)[name].block, 1
        if device != "cpu":
            tokens, parts = planned[name].tokens, planned[name].accumulation
        told, before = foretold(name, tokens), start_of_peak(device)
        took = seconds_of(recipe, name, shape, tokens, device, parts, arguments.steps)
        seconds[name] = {"measured": took} if skip else {"foretold": told, "measured": took}
        ratios |= {} if skip else {name: told / took}
        what = "" if skip else f"{told:.2f} s a step foretold, "
        print(f"{name}: {what}{took:.2f} s measured, {tokens} tokens")
        if device != "cpu":
            peak = torch.cuda.max_memory_allocated() - before
            gpu[name] = gpu_figures(recipe, name, shape, planned[name], took, peak)
            ratios[f"{name}: memory"] = gpu[name]["planned_gb"] / gpu[name]["measured_gb"]
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in gpu[name].items()))
    facts = {"seconds": seconds, "parameters": shape.parameters, "recipe": recipe.name}
    if gpu:
        facts |= {"gpu": gpu, "changes": arguments.changes}
        memory = [ratio for name, ratio in ratios.items() if name.endswith("memory")]
        ratios["worst memory"] = max(memory, key=lambda ratio: abs(ratio - 1))
    parity = {"layers": shape.layers}
    if not skip:
        worst = max((ratios[n] for n in arguments.stages), key=lambda ratio: abs(ratio - 1))
        parity |= {"within": abs(worst - 1)}
        ratios = {"worst": worst, **ratios}
    finish("plan", ratios, parity, device, out=arguments.out, **facts)


def start_of_peak(device: str) -> int:
    """Bytes that are taken now; the peak is measured from here on."""
    if device == "cpu":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def gpu_figures(
    recipe: Recipe, name: str, shape: Shape, planned: StagePlan, took: float, peak: int
) -> dict[str, float]:
    stage = dict(recipe)[name]
    precision = resolve_precision(stage.optimization.precision, recipe.device)
    work = shape.flops_per_token(stage.block, trained=0.0 if name == "stage3" else 1.0)
    speed = planned.tokens / took
    return {
        "tokens": planned.tokens,
        "parts": planned.accumulation,
        "tokens_per_second": round(speed),
        "mfu": round(speed * work / matmul_peak(recipe.device, precision), 4),
        "planned_gb": planned.memory.total / 1e9,
        "measured_gb": peak / 1e9,
    }


if __name__ == "__main__":
    main()
