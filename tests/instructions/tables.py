"""Small unit tables and stand-ins for voices, for the tests of both sets."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechgpt_lib.instructions.chain import Dialogue
from speechgpt_lib.units.extract import Counts, write_units

UNIT_COUNT = 20
INVENTORY = "feed"


def unit_rows(count: int, start: int = 0, **changes) -> list[dict]:
    """Rows of a unit table with different ids, texts, voices and units."""
    voices = ("Female2", "Male1")
    return [
        {
            "id": f"u{k:05d}",
            "text": f"sentence number {k} has {k % 7} dogs",
            "answer": "",
            "kind": "speech",
            "voice": voices[k % 2],
            "split": "train",
            "units": [k % UNIT_COUNT, (k + 3) % UNIT_COUNT, (k + 5) % UNIT_COUNT],
            "durations": [1, 2, 1],
        }
        | changes
        for k in range(start, start + count)
    ]


def write_table(folder: Path, *shards: list[dict], inventory: str = INVENTORY) -> Path:
    """A unit table as `extract` writes it, a shard a list of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        write_units(folder / f"units-{number:05d}.parquet", rows, Counts(), inventory)
    return folder


@dataclass
class Spelling:
    """A voicing that gives each letter a unit, notes what it is asked, and can die at a text."""

    inventory: str = INVENTORY
    name: str = "spelling"
    dies_after: int | None = None
    asked: list[str] = field(default_factory=list)

    def generate(self, texts):
        for text in texts:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(text)
        return [
            np.array(
                [zlib.crc32(c.encode()) % UNIT_COUNT for c in text if c.isalpha()], dtype=np.int64
            )
            for text in texts
        ]

    def refuses(self, text: str) -> str | None:
        return "it has digits only" if text.isdigit() else None


def dialogues(count: int, start: int = 0) -> list[Dialogue]:
    return [
        Dialogue(f"d{k}", f"what is number {k}", f"it is number {k} of many")
        for k in range(start, start + count)
    ]
