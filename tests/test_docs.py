"""README and docs/: links lead somewhere, commands and keys exist, every file is listed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from speechgpt_lib.cli.main import app
from speechgpt_lib.cli.options import overrides
from speechgpt_lib.recipes.loading import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
WIDTH, DOOR = 100, 150  # columns of a page, lines of the README


def commands(page: Path) -> list[list[str]]:
    """The `speechgpt …` commands of a page's bash blocks, each as words without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if "speechgpt " in line]
    parts = [part for words in found for part in _split_at_pipes(words)]
    return [words[1:] for words in parts if words[:1] == ["speechgpt"]]


def _split_at_pipes(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("|", ">", "<"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def given_changes(words: list[str]) -> list[str]:
    """The values of --set among the words of a command."""
    return [b for a, b in zip(words, words[1:], strict=False) if a == "--set"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_are_narrow_and_their_links_lead_somewhere(page):
    text = page.read_text()
    assert not [line for line in text.splitlines() if len(line) > WIDTH]
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_a_door():
    assert len((ROOT / "README.md").read_text().splitlines()) <= DOOR


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page):
    """Every command has the arguments and options that the command line takes."""
    for words in commands(page):
        command, rest = typer.main.get_command(app), list(words)
        while hasattr(command, "commands"):  # `units AUDIO` is short for `units encode AUDIO`
            name = rest.pop(0) if rest[0] in command.commands else "encode"
            command = command.commands[name]
        command.make_context(" ".join(words), rest)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_changes_of_recipes_are_valid(page):
    """Every --set of a command leaves a valid recipe."""
    for words in commands(page):
        if "--recipe" in words:
            load_recipe(words[words.index("--recipe") + 1], overrides(given_changes(words)))


def test_keys_named_in_the_manual_of_recipes_exist():
    settings = load_recipe("release").model_dump()
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`(\w+(?:\.\w+)+)`", row)]
    assert len(keys) > 20
    for key in keys:
        place = settings
        for part in key.split("."):
            assert part in place, key
            place = place[part]


def test_every_file_of_the_library_is_listed(root):
    text = (root / "docs" / "code.md").read_text()
    listed = set()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        room = re.match(r"\w+", section)[0]
        folder = room if (root / "speechgpt_lib" / room).is_dir() else "."
        items = re.findall(r"^- ((?:`\w+\.py`(?:,\s*)?)+):", section, re.MULTILINE)
        names = re.findall(r"`(\w+\.py)`", " ".join(items))
        listed |= {str(Path(folder) / name) for name in names}
    package = root / "speechgpt_lib"
    there = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.name != "__init__.py"}
    assert listed == there
