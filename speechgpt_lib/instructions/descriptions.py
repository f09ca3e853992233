"""Task descriptions: 100 ways to ask for a transcript, 100 to ask for a sentence to be spoken.

The paper had GPT-4 write its 200; these are our own, with verbs varied and requests mixed with
questions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from speechgpt_lib.errors import UserError

TASKS = ("asr", "tts")
SEPARATOR = "This is input:"  # what ends a description in a row
FORBIDDEN = frozenset("<>[]{}")  # in a row they would pass for a marker or a slot


@functools.cache
def load_descriptions(task: Literal["asr", "tts"]) -> tuple[str, ...]:
    """The descriptions of a task, in the order of the file."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    return _lines(resources.files(__package__) / "data" / f"{task}_descriptions.txt")


def choose_description(task: Literal["asr", "tts"], example_id: str, seed: int) -> str:
    """The description for an example: a hash of task, id and seed picks it, whatever the order."""
    return draw(load_descriptions(task), task, example_id, seed)


def draw(choices: Sequence[str], purpose: str, example_id: str, seed: int) -> str:
    """One of `choices`, by a hash of seed, purpose and id."""
    digest = hashlib.sha256(f"{seed} {purpose} {example_id}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def read_descriptions(path: Path) -> tuple[str, ...]:
    """Descriptions of a file, one a line, such as `speechgpt instruct describe` writes."""
    if not path.is_file():
        raise UserError(f"no descriptions at {path}: write some with speechgpt instruct describe")
    found = _lines(path)
    if not found:
        raise UserError(f"{path} has no descriptions: expected one a line")
    for line in found:
        if SEPARATOR in line or set(line) & FORBIDDEN:
            strange = f"{SEPARATOR!r} or one of < > [ ] {{ }}"
            raise UserError(f"{path}: {line!r} has {strange} in it, which belong to the templates")
    return found


def _lines(file) -> tuple[str, ...]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
