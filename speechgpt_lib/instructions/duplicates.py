"""Ids that occur more than once in a collection of tables, found with 8 bytes a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet


@dataclass(frozen=True)
class Duplicates:
    """`first` maps an id that occurs several times to the (table, row) where it stands first."""

    first: dict[bytes, tuple[Path, int]]

    def reason(self, identity: str, table: Path, row: int) -> tuple[str, str] | None:
        """Why this row can't be used, as (reason, detail), or None: the first of several rows with one id is kept."""
        first = self.first.get(identity.encode())
        if first is None or first == (table, row):
            return None
        return "duplicate id", f"the same id stands in {first[0]}, row {first[1]}"


def find_duplicates(tables: Sequence[Path]) -> Duplicates:
    """All ids of the tables that occur more than once."""
    hashes = np.concatenate(
        [np.empty(0, np.int64)] + [_hashes(chunk) for table in tables for chunk in _ids(table)]
    )
    ordered = np.sort(hashes)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return Duplicates({})
    first: dict[bytes, tuple[Path, int]] = {}
    again: set[bytes] = set()
    for table in tables:
        row = 0
        for chunk in _ids(table):
            for identity in chunk:
                if hash(identity) in repeated:
                    again |= {identity} if identity in first else set()
                    first.setdefault(identity, (table, row))
                row += 1
    return Duplicates({identity: place for identity, place in first.items() if identity in again})


def _ids(table: Path):
    with pyarrow.parquet.ParquetFile(table) as file:
        for batch in file.iter_batches(65_536, columns=["id"]):
            yield batch["id"].cast(pyarrow.binary()).to_pylist()


def _hashes(identities: list[bytes | None]) -> np.ndarray:
    return np.fromiter((hash(identity) for identity in identities), np.int64, len(identities))
