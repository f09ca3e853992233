"""Task descriptions: 100 ways to ask for a transcript, 100 ways to ask for a sentence to be spoken.

The paper had GPT-4 write its 200; these are our own, with verbs varied and requests mixed with questions.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Literal

from speechgpt_lib.errors import UserError

TASKS = ("asr", "tts")


@functools.cache
def load_descriptions(task: Literal["asr", "tts"]) -> tuple[str, ...]:
    """The descriptions of a task, in the order of the file."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    text = resources.files(__package__).joinpath("data", f"{task}_descriptions.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def choose_description(task: Literal["asr", "tts"], example_id: str, seed: int) -> str:
    """The description for one example: a hash of task, id and seed picks it, so neither order nor sharding matters."""
    descriptions = load_descriptions(task)
    digest = hashlib.sha256(f"{seed} {task} {example_id}".encode()).digest()
    return descriptions[int.from_bytes(digest[:8], "big") % len(descriptions)]
