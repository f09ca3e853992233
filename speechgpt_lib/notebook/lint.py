"""What is wrong with notebooks: `python -m speechgpt_lib.notebook.lint notebooks`.

Checked is what keeps notebooks reviewable (no outputs, stable readable cell ids), runnable
headlessly (one cell of literal parameters, nothing that only works on one machine or only in
JupyterLab) and readable (a title, short cells of short lines, exercises).
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from nbformat.validator import iter_validate

from speechgpt_lib.notebook.exercises import EXERCISES

PARAMETERS = ("recipe", "run_dir", "seed", "device", "force")
WITHOUT_EXERCISES = ("00", "10")
LONGEST_CELL, MEDIAN_CELL, LONGEST_PARAMETERS, CODE_CELLS = 20, 8, 10, (15, 33)  # lines; cells
WIDEST = 88  # columns
_READABLE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RANDOM = re.compile(r"(?=.*\d)[0-9a-f]{8}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHELL = re.compile(
    r"^\s*(!|[\w, ]+=\s*!|%%(bash|sh|script|!)|[\w, =]*%(pip|conda|system|sx)\b)", re.MULTILINE
)
_MAGIC = re.compile(r"^\s*%.*$", re.MULTILINE)
_ROOTS = (
    "home|root|tmp|usr|var|opt|mnt|etc|srv|content|Users|Volumes|work|workspace|data|scratch|kaggle"
)
_ABSOLUTE = re.compile(rf"/({_ROOTS})(/|$)|[A-Za-z]:[\\/]|~[\w.-]*/|file:/")
_PATH = re.compile(r"(?<![\w.:/])(?:/|~|[A-Za-z]:\\)[\w./~\\-]+")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)  # where `#` begins no title


def lint(
    notebook: Path, without_exercises: tuple[str, ...] = WITHOUT_EXERCISES
) -> tuple[list[str], list[str]]:
    """What is wrong with a notebook and what is only unusual: two lists of "cell: message"."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        invalid = next(iter_validate(content), None)  # unlike `validate`, it repairs nothing
    except (OSError, ValueError, AttributeError) as error:  # the last one for JSON but no object
        invalid = error
    if invalid:
        return [f"-: not a valid notebook: {str(invalid).splitlines()[0]}"], []
    cells = [{"id": "-", **cell, "source": "".join(cell["source"])} for cell in content["cells"]]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    problems = [*_whole(content, cells), *_parameters(code)]
    for cell in cells:
        check = _code_cell if cell["cell_type"] == "code" else _text_cell
        problems += [f"{cell['id']}: {message}" for message in (*_any_cell(cell), *check(cell))]
    if notebook.name[:2] not in without_exercises:
        problems += _exercises(cells, notebook.name[:2])
    few, many = CODE_CELLS
    unusual = [] if few <= len(code) <= many else [f"{len(code)} code cells, {few} to {many} are"]
    return problems, [f"-: {found} usual" for found in unusual]


def _whole(content: dict, cells: list[dict]) -> Iterator[str]:
    name = content["metadata"].get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"-: its kernelspec is {name!r}, expected 'python3'"
    texts = [cell for cell in cells if cell["cell_type"] == "markdown"]
    titles = [c for c in texts if re.search(r"^# \S", _FENCED.sub("", c["source"]), re.MULTILINE)]
    if not titles or titles[0] not in cells[:3]:
        yield "-: there is no title (`# …`) in the first three cells"
    for cell in titles[1:]:
        yield f"{cell['id']}: a second title (`# …`); use `##`"
    ids = [cell["id"] for cell in cells]
    for name in dict.fromkeys(ids):
        if ids.count(name) > 1:
            yield f"{name}: this cell id is used {ids.count(name)} times"
    median = statistics.median([_lines(c) for c in cells if c["cell_type"] == "code"] or [0])
    if median > MEDIAN_CELL:
        yield f"-: half of its code cells have {median:g} lines or more, expected {MEDIAN_CELL}"


def _lines(cell: dict) -> int:
    return cell["source"].count("\n") + 1


def _parameters(code: list[dict]) -> Iterator[str]:
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        yield f"-: {len(tagged)} cells are tagged `parameters`, expected one"
        return
    cell, names = tagged[0], set()
    if _lines(cell) > LONGEST_PARAMETERS:
        yield f"{cell['id']}: the parameters take more than {LONGEST_PARAMETERS} lines"
    for statement in _parse(cell["source"]) or []:
        target = _literal_target(statement)
        names.add(target)
        if target is None:
            found = ast.unparse(statement)[:60]
            yield f"{cell['id']}: `{found}` is not `name = literal`, which papermill needs"
    if missing := [name for name in PARAMETERS if name not in names]:
        yield f"{cell['id']}: parameters missing: {', '.join(missing)}"


def _literal_target(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign):
        target = statement.targets[0] if len(statement.targets) == 1 else None
    else:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
    try:
        ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    except (ValueError, AttributeError, TypeError):
        return None
    return target.id if isinstance(target, ast.Name) else None


def _any_cell(cell: dict) -> Iterator[str]:
    if not _READABLE.fullmatch(cell["id"]) or _RANDOM.fullmatch(cell["id"]):
        yield "its id is not readable; expected words like `load-audio`"
    if "raises-exception" in cell["metadata"].get("tags", []):
        yield "the tag raises-exception makes a headless run fail; catch and print the error"


def _text_cell(cell: dict) -> Iterator[str]:
    if _ABSOLUTE.search(" ".join(_PATH.findall(cell["source"]))):
        yield "it names an absolute path; it exists on one machine only"


def _code_cell(cell: dict) -> Iterator[str]:
    source = cell["source"]
    if cell.get("outputs") or cell.get("execution_count") is not None:
        yield "it has outputs or an execution count; strip it with `nbstripout`"
    if _lines(cell) > LONGEST_CELL:
        yield f"{_lines(cell)} lines, at most {LONGEST_CELL} are readable"
    for number, line in enumerate(source.split("\n"), 1):
        if len(line) > WIDEST:
            yield f"line {number} has {len(line)} columns, at most {WIDEST} fit a browser"
    if _SHELL.search(source):
        yield "a shell or install command (`!`, `%pip`, `%%bash`): its failure would go unnoticed"
    tree = _parse(source)
    if tree is None:
        yield "it is not valid Python"
    elif any(_ABSOLUTE.match(text) for text in _strings(tree)):
        yield "it holds an absolute path; make it relative to the run directory"


def _exercises(cells: list[dict], number: str) -> Iterator[str]:
    ids = set()
    for cell in [cell for cell in cells if cell["cell_type"] == "code"]:
        for node in _nodes(_parse(cell["source"]) or []):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", None) != "check":
                continue
            first = node.args[0] if node.args else None
            exercise = first.value if isinstance(first, ast.Constant) else None
            ids.add(exercise)
            if exercise not in EXERCISES:
                where = "speechgpt_lib/notebook/exercises.py"
                yield f"{cell['id']}: check({exercise!r}) has no entry in {where}"
            elif exercise.split(".")[0] != str(int(number)):
                yield f"{cell['id']}: check({exercise!r}) belongs to another notebook"
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    solutions = sum(text.count("<details") for text in texts)
    if solutions < len(ids):
        yield f"-: {len(ids)} exercises but {solutions} solutions in <details>"
    if len(ids) < 2:
        yield f"-: {len(ids)} exercises with check(…), expected at least two"


def _parse(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(_MAGIC.sub("", _SHELL.sub("#", source))).body
    except SyntaxError:
        return None


def _nodes(tree: list[ast.stmt]) -> list[ast.AST]:
    return [node for statement in tree for node in ast.walk(statement)]


def _strings(tree: list[ast.stmt]) -> list[str]:
    """Literal texts; of an f-string only its first part: later ones may start with a slash."""
    nodes = _nodes(tree)
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    later = {id(part) for node in joined for part in node.values[1:]}
    texts = [n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [node.value for node in texts if id(node) not in later]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 where something is wrong."""
    what = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("python -m speechgpt_lib.notebook.lint", description=what)
    parser.add_argument("paths", nargs="+", type=Path, help="notebooks, or folders of them")
    numbers = {"default": ",".join(WITHOUT_EXERCISES), "help": "notebooks that need none"}
    parser.add_argument("--without-exercises", **numbers)
    options = parser.parse_args(arguments)
    found = []
    for path in options.paths:
        found += sorted(path.glob("*.ipynb")) if path.is_dir() else [path] * path.is_file()
    if not found:
        print(f"no notebooks in {', '.join(map(str, options.paths))}", file=sys.stderr)
        return 1
    wrong = 0
    for notebook in found:
        problems, unusual = lint(notebook, tuple(options.without_exercises.split(",")))
        for message in problems + [f"{text} (only a warning)" for text in unusual]:
            print(f"{notebook}:{message}")
        wrong += len(problems)
    print(f"{len(found)} notebooks, {wrong} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
