"""Does `speechgpt plan --measure` tell the truth?

    python benchmarks/plan.py [--recipe small] [--blocks 4]

It times few layers and extrapolates. Here each stage of the recipe is then trained for some steps
with all its layers, in the same loop, on this machine; what was foretold is printed beside it. The
weights are random: they cost the same. The ratio is foretold seconds over measured ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import finish
from speechgpt_lib.language_model.planning import Shape
from speechgpt_lib.language_model.timing import measure, seconds_of
from speechgpt_lib.recipes.loading import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--blocks", type=int, default=4, help="of a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(arguments.recipe, {"device": "cpu"})
    shape, foretold = Shape.of(recipe), measure(recipe, "cpu")
    ratios, seconds = {}, {}
    for name in ("stage1", "stage2", "stage3"):
        tokens = arguments.blocks * dict(recipe)[name].block
        told = foretold(name, tokens)
        took = seconds_of(recipe, name, shape, tokens, "cpu")
        ratios[name], seconds[name] = told / took, {"foretold": told, "measured": took}
        print(f"{name}: {told:.1f} s a step foretold, {took:.1f} s measured, {tokens} tokens")
    worst = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
    facts = {"seconds": seconds, "parameters": shape.parameters, "recipe": recipe.name}
    parity = {"layers": shape.layers, "within": abs(worst - 1)}
    finish("plan", {"worst": worst, **ratios}, parity, out=arguments.out, **facts)


if __name__ == "__main__":
    main()
