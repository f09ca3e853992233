"""The solution that a notebook shows under an exercise passes that exercise."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.notebook.exercise import judge
from speechgpt_lib.notebook.exercises import EXERCISES

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHECK = re.compile(r"check\(\s*\"([^\"]+)\",\s*(\w+)")
SOLUTION = re.compile(r"<details.*?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def exercises_of(cells):
    """(exercise id, name of the function, text of the first <details> after it) for each check in a
    notebook."""
    for place, cell in enumerate(cells):
        for exercise, name in (
            CHECK.findall("".join(cell["source"])) if cell["cell_type"] == "code" else ()
        ):
            after = [
                "".join(c["source"]) for c in cells[place + 1 :] if c["cell_type"] == "markdown"
            ]
            yield exercise, name, next((text for text in after if "<details" in text), "")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_shown_solutions_pass(notebook):
    for exercise, name, text in exercises_of(
        json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    ):
        code = SOLUTION.search(text)
        assert code, f"{notebook.name}: no ```python block in a <details> below check({exercise!r})"
        scope = {"np": np, "torch": torch}
        exec(code[1], scope)  # the repository's own text
        assert judge(EXERCISES[exercise], scope[name]).state == "pass", (notebook.name, exercise)


def test_a_shown_solution_is_found():
    cells = [
        {"cell_type": "code", "source": 'merge = check("1.a", merge)'},
        {
            "cell_type": "markdown",
            "source": ["<details><summary>Solution</summary>\n", "\n", "```python\nx = 1\n```\n"],
        },
    ]
    ((exercise, name, text),) = exercises_of(cells)
    assert (exercise, name, SOLUTION.search(text)[1]) == ("1.a", "merge", "x = 1\n")
