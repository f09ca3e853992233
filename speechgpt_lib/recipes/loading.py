"""YAML files and overrides → validated recipes, or one line that says which key is wrong and what
is allowed there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import DiskCorpus, Imports

BUILT_IN = ("smoke", "lab", "release", "paper")


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """A built-in recipe by name or any YAML file by path, with `overrides` put in, validated.

    overrides: dotted key → value, such as {"stage2.optimization.steps": 100, "corpora.0.root":
        "speech"}.

    Raises:
        UserError: unknown name, unreadable YAML, or a key that the schema refuses (key, value and
            what is allowed).
    """
    path = Path(name_or_path)
    if str(name_or_path) in BUILT_IN:
        path = Path(__file__).parent / f"{name_or_path}.yaml"
    choice = f"choose {', '.join(BUILT_IN)} or give the path of a .yaml file"
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"unknown recipe {str(name_or_path)!r}: {choice}")
    if not path.is_file():
        raise UserError(f"no recipe file at {path}: {choice}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        found = type(values).__name__
        raise UserError(f"{path} holds {found}, expected keys and values as in recipes/lab.yaml")
    for key, value in (overrides or {}).items():
        put(values, key, value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def check_sources(recipe: Recipe) -> None:
    """Raises UserError naming all files and folders of the recipe that are not there."""
    paths = [c.root for c in recipe.corpora if isinstance(c, DiskCorpus)]
    for source in (getattr(recipe.imports, name) for name in Imports.model_fields):
        if isinstance(source, str):
            paths.append(source)
        elif source is not None:
            values = source.model_dump().items()
            paths += [
                v for k, v in values if isinstance(v, str) and k != "encoder"
            ]  # may be a name
    found = [(path, Path(recipe.data).expanduser() / Path(path).expanduser()) for path in paths]
    if missing := list(dict.fromkeys(str(place) for _, place in found if not place.exists())):
        needs = f" It needs: {'; '.join(recipe.needs)}." if recipe.needs else ""
        raise UserError(
            f"recipe {recipe.name} reads what is not there: {', '.join(missing)}.{needs} Give the "
            "folder that holds it by --set data=DIR, or --set imports.NAME=null to make a step here"
        )


def put(values: dict, key: str, value: object) -> None:
    """Set a dotted key in the values of a recipe; numbers are places in a list."""
    place: Any = values
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        if isinstance(place, list):
            place = place[_index(place, key, part)]
            continue
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict | list):
            inner = ".".join(parents[: depth + 1])
            raise UserError(f"can't set {key}: {inner} is {str(place)[:60]!r}, which has no keys")
    place[_index(place, key, last) if isinstance(place, list) else last] = value


def _index(place: list, key: str, part: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise UserError(
            f"can't set {key}: {part!r} is no place in a list of {len(place)} (they count from 0)"
        )
    return int(part)


def parse_override(text: str) -> tuple[str, object]:
    """`KEY=VALUE` → (key, value); the value is YAML: `null`, `[a, b]`, `{k: v}`, `0.1`, `text`."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise UserError(
            f"--set {text!r}: expected KEY=VALUE, such as stage2.optimization.steps=100"
        )
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())[:120]
        raise UserError(f"--set {key.strip()}: {value!r} is no YAML value ({what})") from None


def _explain(error: ValidationError) -> str:
    """The first three problems, unknown keys first: a misspelt key also counts as missing."""
    problems = []
    found = [item for item in error.errors() if "str" not in item["loc"]]  # of path or settings
    found = [item for item in found if item["type"] != "too_short"] or error.errors()
    ordered = sorted(found, key=lambda item: item["type"] != "extra_forbidden")
    for item in ordered[:3]:
        path, allowed = _place(item["loc"])
        key = ".".join(path) or "recipe"
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}; allowed here: {', '.join(allowed)}")
        else:
            shown = (
                "" if isinstance(item["input"], dict) else f" (found {str(item['input'])[:60]!r})"
            )
            problems.append(f"{key}: {item['msg'].removeprefix('Value error, ')}{shown}")
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(problems) + more


def _place(location: tuple) -> tuple[list[str], list[str]]:
    """Where an error is, as keys of the recipe, and which keys are allowed beside the last one."""
    path: list[str] = []
    kinds: list[type[BaseModel]] = [Recipe]
    for part in location:
        named = [kind for kind in kinds if part in _tags(kind)]
        if named and part not in kinds[0].model_fields:  # tells one kind of section from another
            kinds = named
            continue
        path.append(str(part))
        inner = [kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields]
        found = [section for annotation in inner for section in _sections(annotation)]
        if found and part != location[-1]:
            kinds = found
    return path, sorted({name for kind in kinds for name in kind.model_fields})


def _sections(annotation: object) -> list[type[BaseModel]]:
    """The sections that a field may hold, whatever they are wrapped in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def _tags(kind: type[BaseModel]) -> set[str]:
    """By which names error locations tell a kind of section: its own, or the readers that it is
    for."""
    reader = kind.model_fields.get("reader")
    return {kind.__name__, *(get_args(reader.annotation) if reader else ())}


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text that `load_recipe` reads back."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )
