import json

import pytest

from speechgpt_lib.notebook.lint import lint, main

EXERCISES = ('merge = check("1.a", merge)', 'expand = check("1.b", expand)')
SOLUTION = "<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n\n</details>"


@pytest.fixture
def write(tmp_path, notebook_json):
    """Write notebook 01 with two exercises and the given cells; `change` may edit its JSON."""

    def write(*cells, name="01_unit_extraction.ipynb", change=lambda notebook: None, **options):
        notebook = notebook_json(*cells, **options)
        for letter, line in zip("ab", EXERCISES, strict=True):
            exercise = notebook_json((f"exercise-{letter}", line))["cells"][-1]
            solution = {
                "cell_type": "markdown",
                "id": f"solution-{letter}",
                "metadata": {},
                "source": SOLUTION,
            }
            notebook["cells"] += [exercise, solution]
        change(notebook)
        (tmp_path / name).write_text(json.dumps(notebook))
        return tmp_path / name

    return write


def ends_with(code, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(*arguments)
    return ended.value.code == code


def test_a_clean_notebook_passes_with_a_warning_on_its_length(write, capsys):
    path = write(("load-audio", "x = 1"), ("magic", "%matplotlib inline\nx + 1"))
    assert lint(path) == ([], ["-: 5 code cells, 15 to 33 are usual"])
    assert ends_with(0, [path.parent])
    assert "1 notebooks, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("a1b2c3d4", "x"), "a1b2c3d4: its id is not readable"),
        (("Load_Audio", "x"), "Load_Audio: its id is not readable"),
        (("long", "x\n" * 20 + "x"), "long: 21 lines, at most 20"),
        (("wide", "x\ny = " + "1" * 85), "wide: line 2 has 89 columns, at most 88"),
        (("shell", "!ls"), "shell: a shell or install command"),
        (("shell", "names = !ls"), "shell: a shell or install command"),
        (("install", "if True:\n    %pip install x"), "install: a shell or install command"),
        (("bash", "%%bash\nfalse"), "bash: a shell or install command"),
        (("path", 'open("/home/me/x.wav")'), "path: it holds an absolute path"),
        (("path", 'open(r"C:\\data\\x.wav")'), "path: it holds an absolute path"),
        (("path", 'open(f"~/{recipe}.wav")'), "path: it holds an absolute path"),
        (("syntax", "x ="), "syntax: it is not valid Python"),
        (
            ("check-other", 'check("2.a", f)'),
            "check-other: check('2.a') belongs to another notebook",
        ),
        (("check-none", 'check("1.z", f)'), "check-none: check('1.z') has no entry"),
    ],
)
def test_bad_cells_are_named(write, cell, message):
    problems, _ = lint(write(cell))
    assert any(problem.startswith(message) for problem in problems), problems


def test_most_cells_are_short(write):
    long = [(f"long-{letter}", "x\n" * 8 + "x") for letter in "abcd"]
    assert lint(write(*long))[0] == ["-: half of its code cells have 9 lines or more, expected 8"]


@pytest.mark.parametrize(
    "text", ['f"{run}/home/x"', '"48 kbit/s"', '"and/or"', '"/"', "1 / 2", '"~ 3 s"', '"a: /b"']
)
def test_slashes_that_are_no_paths(write, text):
    assert lint(write(("slash", f"print({text})")))[0] == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "-: 0 cells are tagged `parameters`"),
        (
            'recipe = "lab"\nrun_dir = "x"\nseed = 0\ndevice = "cpu"',
            "parameters: parameters missing: force",
        ),
        ("recipe = run_dir = seed = device = force = 1", "parameters: `recipe = run_dir"),
        ("import os", "parameters: `import os` is not `name = literal`"),
        ("recipe: str = str(1)", "parameters: `recipe: str = str(1)` is not"),
        (
            "\n".join(f"p{i} = {i}" for i in range(11)),
            "parameters: the parameters take more than 10 lines",
        ),
    ],
)
def test_parameters(write, parameters, message):
    problems, _ = lint(write(parameters=parameters))
    assert any(problem.startswith(message) for problem in problems), problems


def executed(notebook):
    notebook["cells"][-2]["execution_count"] = 3


def tagged(notebook):
    notebook["cells"][-2]["metadata"]["tags"] = ["raises-exception"]


def other_kernel(notebook):
    notebook["metadata"]["kernelspec"]["name"] = "speech-env"


def untitled(notebook):
    notebook["cells"][0]["source"] = "```python\n# no title\n```"


def twice(notebook):
    notebook["cells"][-1]["id"] = "exercise-a"


def at_home(notebook):
    notebook["cells"][0]["source"] = "# Title\n\nLook into `/home/me/runs` or ~/runs."


def no_exercises(notebook):
    del notebook["cells"][-4:]


def no_solution(notebook):
    del notebook["cells"][-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (executed, "exercise-b: it has outputs or an execution count"),
        (tagged, "exercise-b: the tag raises-exception"),
        (other_kernel, "-: its kernelspec is 'speech-env'"),
        (untitled, "-: there is no title"),
        (twice, "exercise-a: this cell id is used 2 times"),
        (at_home, "title: it names an absolute path"),
        (no_solution, "-: 2 exercises but 1 solutions in <details>"),
        (no_exercises, "-: 0 exercises with check(…), expected at least two"),
    ],
)
def test_bad_notebooks(write, change, message):
    problems, _ = lint(write(change=change))
    assert any(message in problem for problem in problems), problems


def test_exercises_belong_to_their_notebook_and_some_notebooks_need_none(write, capsys):
    path = write(name="02_unit_vocoder.ipynb")
    assert lint(path)[0] == [
        "exercise-a: check('1.a') belongs to another notebook",
        "exercise-b: check('1.b') belongs to another notebook",
    ]
    assert lint(write(name="10_scale_out.ipynb", change=no_exercises))[0] == []
    assert ends_with(1, [path])
    assert f"{path}:exercise-a: check('1.a') belongs" in capsys.readouterr().out
    assert ends_with(0, [path], "02")


def test_what_is_no_notebook(tmp_path):
    (tmp_path / "01_x.ipynb").write_text("{")
    assert lint(tmp_path / "01_x.ipynb")[0][0].startswith("-: not a valid notebook")
    (tmp_path / "01_x.ipynb").write_text(
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}'
    )
    assert lint(tmp_path / "01_x.ipynb")[0][0].startswith("-: not a valid notebook")
    with pytest.raises(SystemExit, match="no notebooks in .*nowhere"):
        main([tmp_path / "nowhere"])
