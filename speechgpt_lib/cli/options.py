"""What the commands share: options of one meaning, opening a run, and the one place where results
are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

LAB = Path("runs/lab")


def option(kind: Any, text: str, *names: str, **limits: Any) -> Any:
    """What stands behind the colon of a command's parameter: its type, what --help says, its names
    (by default the parameter's own)."""
    return Annotated[kind, typer.Option(*names, help=text, **limits)]


def argument(kind: Any, text: str) -> Any:
    """As `option`, for an argument: it is found by its place."""
    return Annotated[kind, typer.Argument(help=text)]


RunPath = option(Path, "The run directory to use.", "--run")
VoiceName = option(str | None, "A voice that the run was adapted to.", "--voice")
AsJson = option(bool, "Print one JSON object instead of text.", "--json")
Force = option(bool, "Make again what could be reused.", "--force")
RecipeName = option(str, "smoke, lab, lab-natural, small, release, paper, or a .yaml file.")
RunDir = option(Path | None, "Default: runs/<recipe>.")
Seed = option(int | None, "Short for --set seed=N.", min=0)
Processes = option(int, "Processes to train or extract in.", min=1)
AllowProgram = option(bool, "Let the recipe run the program it names.", "--allow-program")
_CHANGE = "Change a key of the recipe, such as stage2.optimization.steps=100; repeatable."
Changes = option(list[str] | None, _CHANGE, "--set", metavar="KEY=VALUE")


def emit(result: Any, text: str, as_json: bool) -> None:
    """Print a result: one JSON object, or text for people."""
    print(json.dumps(result) if as_json else text)


def say(line: str) -> None:
    """What happens meanwhile goes to standard error, where it doesn't mix with results."""
    print(line, file=sys.stderr, flush=True)


def overrides(changes: list[str] | None, seed: int | None = None) -> dict[str, object]:
    """What --set and --seed say, as dotted keys and values."""
    from speechgpt_lib.recipes.loading import parse_override

    return dict(map(parse_override, changes or ())) | ({} if seed is None else {"seed": seed})


def load(recipe: str, changes: list[str] | None, seed: int | None = None):
    """The recipe with the changes of --set and --seed, validated before any work."""
    from speechgpt_lib.recipes.loading import load_recipe

    return load_recipe(recipe, overrides(changes, seed))


def open_run(path: Path, quiet: bool = False):
    """An existing run; with `quiet` what it says goes to standard error."""
    from speechgpt_lib.runs.run import Run

    return Run.open(path, say=say if quiet else print)
