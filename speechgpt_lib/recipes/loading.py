"""YAML files and overrides → validated recipes, or one line that says which key is wrong.

A file may build on another recipe: `extends` names it, `set` changes its keys as --set does.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.metrics import open_judge
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import DiskCorpus
from speechgpt_lib.runs.artefacts import read_text
from speechgpt_lib.runs.stores import StorePath, located

LARGEST, MOST_ALIASES = 1 << 20, 16  # bytes of a recipe; values that stand elsewhere in it
DEEPEST = 100  # lists and sections within each other
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast, where it is built
OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
OPENING += (yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
BUILT_IN = ("smoke", "lab", "release", "paper", "lab-natural", "small")
OWN = ("name", "summary", "needs", "extends", "set")  # the keys of a file that builds on another


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """A built-in recipe by name or any YAML file by path, with `overrides` put in, validated.

    overrides: dotted key → value, such as {"stage2.optimization.steps": 100, "corpora.0.root": "s"}
    Raises UserError: unknown name, no YAML, or a key that the schema refuses (and what it allows).
    """
    path = _file(name_or_path)
    values = _read(path)
    with reading(path, "compare it with recipes/lab.yaml", "is no recipe"):
        for key, value in (overrides or {}).items():
            put(values, key, value)
        try:
            return Recipe.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{path}: {explain(error)}") from None


def _file(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """Where a recipe lies; a relative path starts beside the file that builds on it."""
    if str(name_or_path) in BUILT_IN:
        return Path(__file__).parent / f"{name_or_path}.yaml"
    return Path(name_or_path) if beside is None else beside.parent / Path(name_or_path)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """The values of a recipe file, put together with those that it builds on."""
    choice = f"choose {', '.join(BUILT_IN)} or give the path of a .yaml file"
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"unknown recipe {str(path)!r}{_for(above)}: {choice}")
    if not path.is_file():
        raise UserError(f"no recipe file at {path}{_for(above)}: {choice}")
    if path.resolve() in [other.resolve() for other in above]:
        raise UserError(f"{path} extends itself, by {above[-1]}: one of them must be whole")
    with reading(path, "compare it with recipes/lab.yaml", "is not valid YAML"):
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is longer than {LARGEST >> 20} MB: is it a recipe?")
        values = _parse(read_text(path))
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"{path} holds {kind}, expected keys and values as in recipes/lab.yaml")
    if "extends" not in values:
        return values
    if unknown := [str(key) for key in values if key not in OWN]:
        cure = f"change keys of {values['extends']} under `set:`"
        raise UserError(f"{path} extends another recipe, so it can't have {unknown[0]!r}: {cure}")
    changes = values.pop("set", None) or {}
    if not isinstance(values["extends"], str) or not isinstance(changes, dict):
        expected = "expected `extends: lab` and keys with values under `set:`"
        raise UserError(f"{path}: `extends` or `set` is of another type; {expected}")
    base = _read(_file(values.pop("extends"), path), (*above, path))
    with reading(path, "see docs/recipes.md", "can't be put together with what it extends"):
        for key, value in changes.items():
            put(base, str(key), value)
    return base | values


def _for(above: tuple[Path, ...]) -> str:
    return f", which {above[-1]} extends" if above else ""


def _parse(text: str) -> Any:
    """The value that YAML text describes.  Names for what stands elsewhere (`*name`) are few: in
    each other, they would make a page a universe.  Each level makes the scanner slower."""
    aliases = depth = 0
    for token in yaml.scan(text, LOADER):
        aliases += isinstance(token, yaml.AliasToken)
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} lists and sections within each other")
    if aliases > MOST_ALIASES:
        raise ValueError(f"it has {aliases} aliases (*name), at most {MOST_ALIASES} are read")
    return yaml.load(text, LOADER)


def check_sources(recipe: Recipe) -> None:
    """Raises UserError naming all files and folders of the recipe that are not there; also a judge
    that it names."""
    roots = [c.root for c in recipe.corpora if isinstance(c, DiskCorpus)]
    paths = []
    for source in recipe.imports.used({"inventory": {"encoder"}}).values():
        # All but an encoder, which may be a name on the hub.
        paths += source.values() if isinstance(source, dict) else [source]
    data = Path(recipe.data).expanduser()
    named = [path for path in paths if isinstance(path, str) and not on_hub(data, path)]
    places = [located(path, recipe.data) for path in roots + named]
    if far := [path for path in places[len(roots) :] if isinstance(path, StorePath)]:
        cure = "copy it to a disk, and give its absolute path"
        raise UserError(f"only corpora are read from a store, not the import {far[0]}: {cure}")
    if missing := dict.fromkeys(str(place) for place in places if not place.exists()):
        needs = f" It needs: {'; '.join(recipe.needs)}." if recipe.needs else ""
        raise UserError(
            f"recipe {recipe.name} reads what is not there: {', '.join(missing)}.{needs} Give the "
            "folder that holds it by --set data=DIR, or --set imports.NAME=null to make a step here"
        )
    if (judge := recipe.evaluation.open_judge) not in (open_judge.AUTO, open_judge.NONE):
        open_judge.find_model(judge, recipe.data)


def on_hub(data: Path, path: str) -> re.Match | None:
    """Whether a path that isn't there is a name on the hub, OWNER/NAME or OWNER/NAME@REVISION."""
    name = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?", path)
    there = (data / Path(path).parts[0]).exists() if name else True
    return None if there or Path(path).suffix in (".pt", ".bin", ".json", ".jsonl") else name


def put(values: dict, key: str, value: object) -> None:
    """Set a dotted key in the values of a recipe; numbers are places in a list."""
    place: Any = values
    *parents, last = key.split(".")
    for depth, part in enumerate(parents, 1):
        at = _place(place, key, part)
        if isinstance(place, dict) and place.get(at) is None:
            place[at] = {}
        place = place[at]
        if not isinstance(place, dict | list):
            inner = f"{'.'.join(parents[:depth])} is {str(place)[:60]!r}"
            raise UserError(f"can't set {key}: {inner}, which has no keys")
    place[_place(place, key, last)] = value


def _place(within: dict | list, key: str, part: str) -> str | int:
    if isinstance(within, dict):
        return part
    if not part.isdigit() or int(part) >= len(within):
        what = f"no place in a list of {len(within)} (they count from 0)"
        raise UserError(f"can't set {key}: {part!r} is {what}")
    return int(part)


def parse_override(text: str) -> tuple[str, object]:
    """`KEY=VALUE` → (key, value); the value is YAML: `null`, `[a, b]`, `{k: v}`, `0.1`, `text`."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not (equals and key):
        example = "stage2.optimization.steps=100"
        raise UserError(f"--set {text!r}: expected KEY=VALUE, such as {example}")
    with reading(f"--set {key}: {value[:60]!r}", "expected null, 0.1, [a, b]", "is no YAML value"):
        return key, _parse(value)


def explain(error: ValidationError) -> str:
    """The first three problems, unknown keys first: a misspelt key also counts as missing."""
    found = [item for item in error.errors() if "str" not in item["loc"]]  # of path or settings
    found = [item for item in found if item["type"] != "too_short"] or error.errors()
    readers = {"lab", *get_args(DiskCorpus.model_fields["reader"].annotation)}
    unknown, wrong = [], []
    for item in found:
        # Readers and names of classes tell one kind of section from another; they are no keys.
        path = [str(p) for p in item["loc"] if p not in readers and not str(p)[:1].isupper()]
        if item["type"] == "unknown":
            allowed = ", ".join(item["ctx"]["allowed"])
            keys = [".".join([*path, key]) for key in item["ctx"]["keys"]]
            unknown += [f"unknown key {key!r}; allowed here: {allowed}" for key in keys]
        else:
            value = item["input"]
            shown = "" if isinstance(value, dict) else f" (found {str(value)[:60]!r})"
            message = item["msg"].removeprefix("Value error, ")
            wrong.append(f"{'.'.join(path) or 'recipe'}: {message}{shown}")
    problems = unknown + wrong
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text that `load_recipe` reads back."""
    return _as_yaml(recipe.model_dump_json())


@functools.lru_cache(64)
def _as_yaml(recipe: str) -> str:
    """From JSON: all steps of a run ask for the same text, and to write it takes 20 ms."""
    return yaml.safe_dump(json.loads(recipe), sort_keys=False, allow_unicode=True, width=120)
