"""Rows of the two sets as records: frozen dataclasses whose fields are the table's columns.

A record holds what a row is made of; `sets.record_to_row` applies the templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet

from speechgpt_lib.errors import reading

# The task or format that rows are counted by, all texts by name, the units (n,) that are shown.
Content = tuple[str, dict[str, str], tuple[np.ndarray, ...]]
NO_UNITS = np.array([], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class CrossModalRecord:
    """A pair of text and units (n,), and the description that asks for one of them."""

    id: str
    task: str
    description: str
    text: str
    voice: str
    units: np.ndarray
    verbatim: str | None = None  # the line of an imported set that we would write differently
    sizes: ClassVar = ("units", "words")

    @property
    def content(self) -> Content:
        """What the row says."""
        return self.task, {"description": self.description, "text": self.text}, (self.units,)


@dataclass(frozen=True, eq=False)
class ChainRecord:
    """A quadruplet of instruction and response, as text and as units (n,)."""

    id: str
    format: str  # one of CHAIN_FORMATS
    kind: str  # of question
    instruction: str
    response: str
    instruction_units: np.ndarray
    response_units: np.ndarray
    verbatim: str | None = None
    sizes: ClassVar = ("instruction_units", "response_units", "instruction_words", "response_words")

    @property
    def content(self) -> Content:
        """What the row says; a format that is text only shows no units."""
        heard = self.instruction_units if self.format.startswith("speech") else NO_UNITS
        spoken = self.response_units if self.format.endswith("speech") else NO_UNITS
        texts = {"instruction": self.instruction, "response": self.response}
        return self.format, texts, (heard, spoken)


Record = CrossModalRecord | ChainRecord
RECORDS: dict[str, type[Record]] = {"cross_modal": CrossModalRecord, "chain": ChainRecord}
_TYPES = {"str": pyarrow.string(), "np.ndarray": pyarrow.list_(pyarrow.int16())}
SCHEMAS = {
    kind: pyarrow.schema([(f.name, _TYPES[f.type]) for f in fields(record) if f.type in _TYPES])
    for kind, record in RECORDS.items()
}
VERBATIM = pyarrow.field("verbatim", pyarrow.string())


def to_table(records: Iterable[Record], schema: pyarrow.Schema) -> pyarrow.Table:
    """Records as rows of a table."""
    return pyarrow.Table.from_pylist([vars(record) for record in records], schema)


def to_records(batch: pyarrow.RecordBatch) -> Iterator[Record]:
    """Rows of a set's table as records."""
    made = RECORDS["cross_modal" if "task" in batch.schema.names else "chain"]
    return map(made, *map(column_values, batch.columns))


def read_batches(
    path: Path, size: int, columns: list | None = None
) -> Iterator[pyarrow.RecordBatch]:
    """Batches of at most `size` rows of a Parquet file; a UserError where it is damaged."""
    whole = reading(path, "delete it and make it again", "is damaged")
    with whole, pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(size, columns=columns)


def column_values(column: pyarrow.Array) -> list:
    """The values of a column; lists of units become int64 arrays (n,)."""
    if not pyarrow.types.is_list(column.type):
        return column.to_pylist()
    values = column.values.to_numpy(zero_copy_only=False).astype(np.int64)
    return [values[a:b] for a, b in pairwise(column.offsets.to_numpy())]


def row_digest(record: Record) -> int:
    """SHA-256 of what a row says: its texts and shown units, but not its id, voice or place."""
    group, texts, shown = record.content
    digest = hashlib.sha256("\x1f".join((group, *texts.values())).encode())
    for units in shown:
        digest.update(b"\x1f" + units.astype("<i2").tobytes())
    return int.from_bytes(digest.digest(), "big")


class Seen(set[int]):
    """Remembers texts by their hashes."""

    def is_new(self, text: str) -> bool:
        """Whether `text` is asked about for the first time."""
        count = len(self)
        self.add(hash(text))
        return len(self) > count


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
