"""What is wrong with notebooks: `python -m speechgpt_lib.notebook.lint notebooks`.

They are reviewable (no outputs, readable cell ids), run headlessly (literal parameters, nothing of
one machine or of JupyterLab only) and are readable (a title, short cells and lines, exercises)."""

import ast
import contextlib
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from nbformat.validator import iter_validate

from speechgpt_lib.notebook.exercises import EXERCISES

PARAMETERS = ("recipe", "run_dir", "seed", "device", "force")
WITHOUT_EXERCISES = ("00", "10")
LONGEST_CELL, MEDIAN_CELL, LONGEST_PARAMETERS, CODE_CELLS = 20, 8, 10, (15, 33)  # lines; cells
WIDEST = 88  # columns
_READABLE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RANDOM = re.compile(r"(?=.*\d)[0-9a-f]{8}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INSTALL = r"[\w, =]*%(pip|conda|system|sx)\b"
_SHELL = re.compile(rf"^\s*(!|[\w, ]+=\s*!|%%(bash|sh|script|!)|{_INSTALL})", re.MULTILINE)
_MAGIC = re.compile(r"^\s*%.*$", re.MULTILINE)
_SYSTEM = "home|root|tmp|usr|var|opt|mnt|etc|srv|content|Users|Volumes"
_ROOTS = rf"/({_SYSTEM}|work|workspace|data|scratch|kaggle)(/|$)"
_ABSOLUTE = re.compile(rf"{_ROOTS}|[A-Za-z]:[\\/]|~[\w.-]*/|file:/")
_PATH = re.compile(r"(?<![\w.:/])(?:/|~|[A-Za-z]:\\)[\w./~\\-]+")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)  # where `#` begins no title
_INVALID = ast.parse("")


def lint(notebook: Path, without_exercises=WITHOUT_EXERCISES) -> tuple[list[str], list[str]]:
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
    for cell in cells:
        cell["tags"], cell["lines"] = cell["metadata"].get("tags", []), cell["source"].split("\n")
    for cell in code:
        cell["tree"] = _INVALID
        with contextlib.suppress(SyntaxError):
            cell["tree"] = ast.parse(_MAGIC.sub("", _SHELL.sub("#", cell["source"])))
    texts = [cell for cell in cells if cell["cell_type"] == "markdown"]
    problems = [*_whole(content, cells, code, texts), *_parameters(code)]
    for cell in cells:
        problems += [f"{cell['id']}: {message}" for message in _cell(cell)]
    if notebook.name[:2] not in without_exercises:
        problems += _exercises(code, texts, notebook.name[:2])
    few, many = CODE_CELLS
    unusual = [] if few <= len(code) <= many else [f"{len(code)} code cells, {few} to {many} are"]
    return problems, [f"-: {found} usual" for found in unusual]


def _whole(content: dict, cells: list, code: list, texts: list) -> Iterator[str]:
    name = content["metadata"].get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"-: its kernelspec is {name!r}, expected 'python3'"
    titles = [c for c in texts if re.search(r"^# \S", _FENCED.sub("", c["source"]), re.MULTILINE)]
    if not titles or titles[0] not in cells[:3]:
        yield "-: there is no title (`# …`) in the first three cells"
    for cell in titles[1:]:
        yield f"{cell['id']}: a second title (`# …`); use `##`"
    ids = [cell["id"] for cell in cells]
    for name in dict.fromkeys(ids):
        if ids.count(name) > 1:
            yield f"{name}: this cell id is used {ids.count(name)} times"
    median = statistics.median([len(cell["lines"]) for cell in code] or [0])
    if median > MEDIAN_CELL:
        yield f"-: half of its code cells have {median:g} lines or more, expected {MEDIAN_CELL}"


def _parameters(code: list[dict]) -> Iterator[str]:
    tagged = [cell for cell in code if "parameters" in cell["tags"]]
    if len(tagged) != 1:
        yield f"-: {len(tagged)} cells are tagged `parameters`, expected one"
        return
    cell, names = tagged[0], set()
    if len(cell["lines"]) > LONGEST_PARAMETERS:
        yield f"{cell['id']}: the parameters take more than {LONGEST_PARAMETERS} lines"
    for statement in cell["tree"].body:
        target = None
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                with contextlib.suppress(ValueError, TypeError):
                    ast.literal_eval(value)
                    target = name
        names.add(target)
        if target is None:
            found = ast.unparse(statement)[:60]
            yield f"{cell['id']}: `{found}` is not `name = literal`, which papermill needs"
    if missing := [name for name in PARAMETERS if name not in names]:
        yield f"{cell['id']}: parameters missing: {', '.join(missing)}"


def _cell(cell: dict) -> Iterator[str]:
    if not _READABLE.fullmatch(cell["id"]) or _RANDOM.fullmatch(cell["id"]):
        yield "its id is not readable; expected words like `load-audio`"
    if "raises-exception" in cell["tags"]:
        yield "the tag raises-exception makes a headless run fail; catch and print the error"
    source, lines = cell["source"], cell["lines"]
    if cell["cell_type"] != "code":
        if _ABSOLUTE.search(" ".join(_PATH.findall(source))):
            yield "it names an absolute path; it exists on one machine only"
        return
    if cell.get("outputs") or cell.get("execution_count") is not None:
        yield "it has outputs or an execution count; strip it with `nbstripout`"
    if len(lines) > LONGEST_CELL:
        yield f"{len(lines)} lines, at most {LONGEST_CELL} are readable"
    for number, line in enumerate(lines, 1):
        if len(line) > WIDEST:
            yield f"line {number} has {len(line)} columns, at most {WIDEST} fit a browser"
    if _SHELL.search(source):
        yield "a shell or install command (`!`, `%pip`, `%%bash`): its failure would go unnoticed"
    if cell["tree"] is _INVALID:
        yield "it is not valid Python"
    nodes = list(ast.walk(cell["tree"]))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    later = [part for node in joined for part in node.values[1:]]  # these may start with a slash
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and n not in later]
    if any(_ABSOLUTE.match(text) for text in texts if isinstance(text, str)):
        yield "it holds an absolute path; make it relative to the run directory"


def _exercises(code: list[dict], texts: list[dict], number: str) -> Iterator[str]:
    ids = set()
    calls = [(cell, n) for cell in code for n in ast.walk(cell["tree"]) if isinstance(n, ast.Call)]
    for cell, call in calls:
        if getattr(call.func, "id", None) == "check":
            exercise = getattr(call.args[0], "value", None) if call.args else None
            ids.add(exercise)
            if exercise not in EXERCISES:
                yield f"{cell['id']}: check({exercise!r}) has no entry in notebook/exercises.py"
            elif exercise.split(".")[0].zfill(2) != number:
                yield f"{cell['id']}: check({exercise!r}) belongs to another notebook"
    solutions = sum(cell["source"].count("<details") for cell in texts)
    if solutions < len(ids):
        yield f"-: {len(ids)} exercises but {solutions} solutions in <details>"
    if len(ids) < 2:
        yield f"-: {len(ids)} exercises with check(…), expected at least two"


def main(paths: list[Path], without_exercises: str = ",".join(WITHOUT_EXERCISES)) -> None:
    """Say what is wrong with notebooks (or folders of them); ends with exit code 1 if anything is.

    `without_exercises`: numbers of the notebooks that need none.
    """
    found, wrong = [], 0
    for path in paths:
        found += sorted(path.glob("*.ipynb")) if path.is_dir() else [path] * path.is_file()
    if not found:
        sys.exit(f"no notebooks in {', '.join(map(str, paths))}")
    for notebook in found:
        problems, unusual = lint(notebook, without_exercises.split(","))
        for message in problems + [f"{text} (only a warning)" for text in unusual]:
            print(f"{notebook}:{message}")
        wrong += len(problems)
    print(f"{len(found)} notebooks, {wrong} problems")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
