"""What the commands share: options of one meaning, opening a run, and the one place where results
are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_RUN = Path("runs/lab")

RunOption = Annotated[Path, typer.Option("--run", help="The run directory to use.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make again what could be reused.")]
RecipeOption = Annotated[str, typer.Option(help="smoke, lab, release, paper, or a .yaml file.")]
RunDirOption = Annotated[Path | None, typer.Option(help="Default: runs/<recipe>.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Short for --set seed=N.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, such as stage2.optimization.steps=100; repeatable.",
    ),
]
ShardsOption = Annotated[
    str | None, typer.Option(help="Only shards A:B, or K::N for every N-th from K: an array's job.")
]


def emit(result: Any, text: str, as_json: bool) -> None:
    """Print a result: one JSON object, or text for people."""
    print(json.dumps(result) if as_json else text)


def say(line: str) -> None:
    """What happens meanwhile goes to standard error, where it doesn't mix with results."""
    print(line, file=sys.stderr, flush=True)


def load(recipe: str, changes: list[str] | None, seed: int | None = None):
    """The recipe with the changes of --set and --seed, validated before any work."""
    from speechgpt_lib.recipes.loading import load_recipe

    return load_recipe(recipe, overrides(changes, seed))


def overrides(changes: list[str] | None, seed: int | None = None) -> dict[str, object]:
    """What --set and --seed say, as dotted keys and values."""
    from speechgpt_lib.recipes.loading import parse_override

    return dict(map(parse_override, changes or ())) | ({} if seed is None else {"seed": seed})


def open_run(path: Path, quiet: bool = False):
    """An existing run; with `quiet` what it says goes to standard error."""
    from speechgpt_lib.runs.run import Run

    return Run.open(path, say=say if quiet else print)


def shard_slice(text: str | None) -> slice | None:
    """`A:B` or `K::N` as a slice."""
    from speechgpt_lib.errors import UserError

    if text is None:
        return None
    parts = text.split(":")
    numbers = all(part == "" or part.isdigit() for part in parts)
    if len(parts) not in (2, 3) or not numbers or (len(parts) == 3 and parts[2] == "0"):
        expected = "expected A:B, such as 0:10, or K::N for every N-th from K"
        raise UserError(f"--shards {text!r} is no range: {expected}")
    return slice(*(int(part) if part else None for part in parts))


def figures(report: dict) -> str:
    """The figures of a report, a line each, with their intervals."""
    found = {
        key: value
        for key, value in report.items()
        if isinstance(value, dict) and {"value", "n", "low", "high"} <= value.keys()
    }
    return "\n".join(
        f"{key:28} {v['value']:8.3f}   ({v['low']:.3f} to {v['high']:.3f}, n = {v['n']})"
        for key, v in found.items()
    )
