"""A mistake in --set, in a step's name or in --shards costs nothing: it is said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

WRONG = ("--set", "stage2.optimization.steps=-1")
COMMANDS = {
    ("run",): "stage2.optimization.steps",
    ("run", "--dry-run"): "greater than 0",
    ("make", "units"): "greater than 0",
    ("units", "extract"): "greater than 0",
}


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_wrong_value_leaves_nothing(command, tmp_path: Path, arguments: tuple) -> None:
    done = command(*arguments, "--recipe", "smoke", "--run-dir", tmp_path / "run", *WRONG)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert COMMANDS[arguments] in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stage4",), "unknown step 'stage4': choose one of corpus"),
        (("stage1", "--shards", "0:1"), "stage1 can't be made in parts"),
        (("units", "--shards", "0:1", "--force"), "--force and --shards exclude each other"),
        (("units", "--shards", "x"), "is no range"),
    ],
)
def test_a_step_that_can_not_be_made_so_leaves_nothing(
    command, tmp_path: Path, arguments: tuple, words: str
) -> None:
    done = command("make", *arguments, "--recipe", "smoke", "--run-dir", tmp_path / "run")
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
