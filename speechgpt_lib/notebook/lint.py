"""Notebooks → what is wrong with them, as file:cell messages: `python -m speechgpt_lib.notebook.lint notebooks`.

Checked is what keeps notebooks reviewable (no outputs, stable readable cell ids), runnable headlessly (one cell of
literal parameters, nothing that only works on one machine or only in JupyterLab) and readable (a title, short cells,
exercises).
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path

from nbformat.validator import iter_validate

from speechgpt_lib.notebook.exercises import EXERCISES

PARAMETERS = ("recipe", "run_dir", "seed", "device", "force")
WITHOUT_EXERCISES = ("00", "10")
LONGEST_CELL, LONGEST_PARAMETERS, CODE_CELLS = 20, 10, (15, 30)
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


def lint(
    notebook: Path, without_exercises: tuple[str, ...] = WITHOUT_EXERCISES
) -> tuple[list[str], list[str]]:
    """What is wrong with a notebook and what is only unusual: two lists of "cell: message"."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        invalid = next(
            iter_validate(content), None
        )  # unlike `validate`, it doesn't repair what it finds
    except (
        OSError,
        ValueError,
        AttributeError,
    ) as error:  # the last one for JSON that is no object
        invalid = error
    if invalid:
        return [f"-: not a valid notebook: {str(invalid).splitlines()[0]}"], []
    cells = [{**cell, "source": "".join(cell["source"])} for cell in content["cells"]]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    problems = _whole(content, cells) + _parameters(code)
    for cell in cells:
        problems += [f"{cell.get('id', '-')}: {message}" for message in _cell(cell)]
    if notebook.name[:2] not in without_exercises:
        problems += _exercises(cells, notebook.name[:2])
    unusual = []
    if not CODE_CELLS[0] <= len(code) <= CODE_CELLS[1]:
        unusual.append(f"-: {len(code)} code cells, {CODE_CELLS[0]} to {CODE_CELLS[1]} are usual")
    return problems, unusual


def _whole(content: dict, cells: list[dict]) -> list[str]:
    problems = []
    name = content["metadata"].get("kernelspec", {}).get("name")
    if name != "python3":
        problems.append(f"-: its kernelspec is {name!r}, expected 'python3'")
    titles = [
        c
        for c in cells
        if c["cell_type"] == "markdown" and re.search(r"^# \S", _prose(c["source"]), re.MULTILINE)
    ]
    if not titles or titles[0] not in cells[:3]:
        problems.append("-: there is no title (`# …`) in the first three cells")
    problems += [f"{cell.get('id')}: a second title (`# …`); use `##`" for cell in titles[1:]]
    ids = [cell.get("id") for cell in cells]
    problems += [
        f"{name}: this cell id is used {ids.count(name)} times"
        for name in dict.fromkeys(ids)
        if ids.count(name) > 1
    ]
    return problems


def _parameters(code: list[dict]) -> list[str]:
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        return [f"-: {len(tagged)} cells are tagged `parameters`, expected one"]
    cell, names, problems = tagged[0], set(), []
    if cell["source"].count("\n") + 1 > LONGEST_PARAMETERS:
        problems.append(
            f"{cell.get('id')}: the parameters take more than {LONGEST_PARAMETERS} lines"
        )
    for statement in _parse(cell["source"]) or []:
        target = _literal_target(statement)
        if target is None:
            problems.append(
                f"{cell.get('id')}: `{ast.unparse(statement)[:60]}` is not `name = literal`, which papermill needs"
            )
        names.add(target)
    missing = [name for name in PARAMETERS if name not in names]
    if missing:
        problems.append(f"{cell.get('id')}: parameters missing: {', '.join(missing)}")
    return problems


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


def _cell(cell: dict) -> list[str]:
    problems, source, name = [], cell["source"], cell.get("id") or ""
    if not _READABLE.fullmatch(name) or _RANDOM.fullmatch(name):
        problems.append("its id is not readable; expected words like `load-audio`")
    if "raises-exception" in cell["metadata"].get("tags", []):
        problems.append(
            "the tag raises-exception makes a headless run fail; catch and print the error instead"
        )
    if cell["cell_type"] != "code":
        if _ABSOLUTE.search(
            " ".join(re.findall(r"(?<![\w.:/])(?:/|~|[A-Za-z]:\\)[\w./~\\-]+", source))
        ):
            problems.append("it names an absolute path; it exists on one machine only")
        return problems
    if cell.get("outputs") or cell.get("execution_count") is not None:
        problems.append("it has outputs or an execution count; strip it with `nbstripout`")
    if source.count("\n") + 1 > LONGEST_CELL:
        problems.append(f"{source.count(chr(10)) + 1} lines, at most {LONGEST_CELL} are readable")
    if _SHELL.search(source):
        problems.append(
            "a shell or install command (`!`, `%pip`, `%%bash`): its failure would go unnoticed"
        )
    tree = _parse(source)
    if tree is None:
        problems.append("it is not valid Python")
    elif any(_ABSOLUTE.match(text) for text in _strings(tree)):
        problems.append("it holds an absolute path; make it relative to the run directory")
    return problems


def _exercises(cells: list[dict], number: str) -> list[str]:
    problems, ids = [], []
    for cell in [cell for cell in cells if cell["cell_type"] == "code"]:
        for node in [
            node for statement in _parse(cell["source"]) or [] for node in ast.walk(statement)
        ]:
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "check"
            ):
                exercise = (
                    node.args[0].value
                    if node.args and isinstance(node.args[0], ast.Constant)
                    else None
                )
                ids.append(exercise)
                if exercise not in EXERCISES:
                    problems.append(
                        f"{cell.get('id')}: check({exercise!r}) has no entry in speechgpt_lib/notebook/exercises.py"
                    )
                elif exercise.split(".")[0] != str(int(number)):
                    problems.append(
                        f"{cell.get('id')}: check({exercise!r}) belongs to another notebook"
                    )
    solutions = sum(
        cell["source"].count("<details") for cell in cells if cell["cell_type"] == "markdown"
    )
    if solutions < len(set(ids)):
        problems.append(f"-: {len(set(ids))} exercises but {solutions} solutions in <details>")
    if len(set(ids)) < 2:
        problems.append(f"-: {len(set(ids))} exercises with check(…), expected at least two")
    return problems


def _parse(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(_MAGIC.sub("", _SHELL.sub("#", source))).body
    except SyntaxError:
        return None


def _strings(tree: list[ast.stmt]) -> list[str]:
    """Literal texts; of an f-string only its first part, since a later one may well start with a slash."""
    nodes = [node for statement in tree for node in ast.walk(statement)]
    later = {
        id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values[1:]
    }
    return [
        n.value
        for n in nodes
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in later
    ]


def _prose(markdown: str) -> str:
    """Markdown without its fenced code, where `#` begins a comment and no title."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m speechgpt_lib.notebook.lint", description=__doc__.splitlines()[0]
    )
    parser.add_argument("paths", nargs="+", type=Path, help="notebooks, or folders of them")
    parser.add_argument(
        "--without-exercises",
        default=",".join(WITHOUT_EXERCISES),
        help="numbers of notebooks that need none",
    )
    options = parser.parse_args(arguments)
    found = [
        p
        for path in options.paths
        for p in (sorted(path.glob("*.ipynb")) if path.is_dir() else [path])
    ]
    found = [path for path in found if path.is_file()]
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
