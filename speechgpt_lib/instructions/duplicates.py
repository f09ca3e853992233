"""Ids and texts that occur more than once, found with 8 bytes each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from speechgpt_lib.instructions.parsing import BadRow
from speechgpt_lib.instructions.records import read_batches


def hash64(text: str) -> int:
    """A hash of 8 bytes, the same in every process."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Seen:
    """Remembers texts by their hashes."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def is_new(self, text: str) -> bool:
        """Whether `text` is asked about for the first time."""
        count = len(self._hashes)
        self._hashes.add(hash64(text))
        return len(self._hashes) > count


@dataclass(frozen=True)
class Duplicates:
    """`first` maps an id that occurs several times to the (table, row) where it stands first."""

    first: dict[bytes, tuple[Path, int]]

    def check(self, identity: str, table: Path, row: int) -> None:
        """Raises BadRow for a row whose id stands in one before it: the first is kept."""
        first = self.first.get(identity.encode(), (table, row))
        if first != (table, row):
            raise BadRow("duplicate id", f"the same id stands in {first[0]}, row {first[1]}")


def find_duplicates(tables: Sequence[Path]) -> Duplicates:
    """All ids of the tables that occur more than once."""
    chunks = (np.array([hash(i) for i in ids], np.int64) for t in tables for ids in _ids(t))
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *chunks]))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    first: dict[bytes, tuple[Path, int]] = {}
    again: set[bytes] = set()
    for table in tables if repeated else ():
        for row, identity in enumerate(i for ids in _ids(table) for i in ids):
            if hash(identity) in repeated:
                again |= {identity} & first.keys()
                first.setdefault(identity, (table, row))
    return Duplicates({identity: place for identity, place in first.items() if identity in again})


def _ids(table: Path) -> Iterator[list[bytes | None]]:
    for batch in read_batches(table, 65_536, ["id"]):
        yield batch["id"].cast(pyarrow.binary()).to_pylist()
