"""Token rows on disk, for sets that no memory holds: written one by one, read where they are needed.

A row in memory is two lists of Python numbers, some 40 bytes a token; the nine million rows of the released sets would take 100 GB in every
process.  Here a token takes 3 bytes, mapped from a file, and a row that nobody reads is a number.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from speechgpt_lib.language_model.rows import TokenRow


class TableRow:
    """A row of a `TokenTable`; what it holds is read when it is asked for.  To be used as a `TokenRow`."""

    __slots__ = ("number", "table")

    def __init__(self, table: TokenTable, number: int):
        self.table, self.number = table, number

    def __len__(self) -> int:
        return int(self.table.starts[self.number + 1] - self.table.starts[self.number])

    @property
    def ids(self) -> list[int]:
        return self.table.ids[self._place].tolist()

    @property
    def weights(self) -> list[float]:
        return self.table.values[self.table.codes[self._place]].tolist()

    @property
    def name(self) -> str:
        start, end = self.table.name_starts[self.number : self.number + 2]
        return self.table.names[start:end].tobytes().decode()

    @property
    def _place(self) -> slice:
        return slice(*self.table.starts[self.number : self.number + 2])


class TokenTable(Sequence):
    """Rows in a folder: ids one after the other, for each the number of its weight, and where rows begin."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "facts.json").read_text())
        self.values = np.array(facts["weights"], dtype=np.float64)
        self.ids, self.codes = (
            _mapped(folder / "ids", facts["dtype"]),
            _mapped(folder / "codes", "uint8"),
        )
        self.starts, self.name_starts = (
            _mapped(folder / name, "int64") for name in ("starts", "name_starts")
        )
        self.names = _mapped(folder / "names", "uint8")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> TableRow:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return TableRow(self, number % len(self))


def write_table(folder: Path, rows: Iterable[TokenRow], vocabulary_size: int) -> TokenTable:
    """Write `rows`, whose weights have at most 256 different values, into a new `folder`."""
    folder.mkdir(parents=True)
    dtype = np.min_scalar_type(max(0, vocabulary_size - 1))
    codes: dict[float, int] = {}
    starts, name_starts = array("q", [0]), array("q", [0])
    with (
        open(folder / "ids", "wb") as ids,
        open(folder / "codes", "wb") as weights,
        open(folder / "names", "wb") as names,
    ):
        for row in rows:
            ids.write(np.array(row.ids, dtype=dtype).tobytes())
            weights.write(bytes([codes.setdefault(w, len(codes)) for w in row.weights]))
            names.write(name := row.name.encode())
            starts.append(starts[-1] + len(row))
            name_starts.append(name_starts[-1] + len(name))
    (folder / "starts").write_bytes(starts.tobytes())
    (folder / "name_starts").write_bytes(name_starts.tobytes())
    (folder / "facts.json").write_text(json.dumps({"dtype": dtype.name, "weights": list(codes)}))
    return TokenTable(folder)


def _mapped(path: Path, dtype: str) -> np.ndarray:
    return (
        np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)
    )
