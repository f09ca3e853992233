"""Task descriptions: 100 ways to ask for a transcript, 100 ways to ask for a sentence to be spoken.

The paper had GPT-4 write its 200; these are our own, with verbs varied and requests mixed with questions.
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


@functools.cache
def load_descriptions(task: Literal["asr", "tts"]) -> tuple[str, ...]:
    """The descriptions of a task, in the order of the file."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    text = (
        resources.files(__package__)
        .joinpath("data", f"{task}_descriptions.txt")
        .read_text(encoding="utf-8")
    )
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def choose_description(task: Literal["asr", "tts"], example_id: str, seed: int) -> str:
    """The description for one example: a hash of task, id and seed picks it, so neither order nor sharding matters."""
    return draw(load_descriptions(task), task, example_id, seed)


def draw(choices: Sequence[str], purpose: str, example_id: str, seed: int) -> str:
    """One of `choices`, by a hash of seed, purpose and id."""
    digest = hashlib.sha256(f"{seed} {purpose} {example_id}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def read_descriptions(path: Path) -> tuple[str, ...]:
    """Descriptions of a file, one a line, such as `speechgpt instruct describe` writes."""
    if not path.is_file():
        raise UserError(
            f"no descriptions at {path}: write some with speechgpt instruct describe, one a line"
        )
    found = tuple(
        line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    if not found:
        raise UserError(f"{path} has no descriptions: expected one a line")
    for line in found:
        if SEPARATOR in line or set(line) & set("<>[]{}"):
            raise UserError(
                f"{path}: {line!r} has {SEPARATOR!r} or one of < > [ ] {{ }} in it, which belong to the templates"
            )
    return found
