"""Ids and texts that occur more than once, found with 8 bytes each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow

from speechgpt_lib.instructions.records import read_batches


class Seen:
    """Remembers texts by their hashes."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def is_new(self, text: str) -> bool:
        """Whether `text` is asked about for the first time."""
        count = len(self._hashes)
        self._hashes.add(hash(text))
        return len(self._hashes) > count


def find_duplicates(tables: Sequence[Path]) -> dict[bytes, tuple[Path, int]]:
    """Each id that occurs more than once in `tables` → the (table, row) where it stands first."""
    chunks = (np.array([hash(i) for i in ids], np.int64) for t in tables for ids in _ids(t))
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *chunks]))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    first: dict[bytes, tuple[Path, int]] = {}
    for table in tables if repeated else ():
        for row, identity in enumerate(i for ids in _ids(table) for i in ids):
            if hash(identity) in repeated:
                first.setdefault(identity, (table, row))
    return first


def _ids(table: Path) -> Iterator[list[bytes | None]]:
    for batch in read_batches(table, 65_536, ["id"]):
        yield batch["id"].cast(pyarrow.binary()).to_pylist()
