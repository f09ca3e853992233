"""Token rows on disk, for sets that no memory holds: written one by one, read where needed.

A row in memory is two lists of Python numbers, some 40 bytes a token; the nine million rows of the
released sets would take 100 GB in every process.  Here a token takes 3 bytes, mapped from a file,
and a row that nobody reads is a number.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from speechgpt_lib.language_model.rows import TokenRow


class TableRow:
    """A row of a `TokenTable`, read when it is asked for; to be used as a `TokenRow`."""

    __slots__ = ("number", "table")

    def __init__(self, table: TokenTable, number: int):
        self.table, self.number = table, number

    def __len__(self) -> int:
        return int(self.table.starts[self.number + 1] - self.table.starts[self.number])

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        return self.table.ids[self._place].tolist()

    @property
    def weights(self) -> list[float]:
        """The loss weight of each token."""
        return self.table.values[self.table.codes[self._place]].tolist()

    @property
    def name(self) -> str:
        """Where the row comes from."""
        start, end = self.table.name_starts[self.number : self.number + 2]
        return self.table.names[start:end].tobytes().decode()

    @property
    def _place(self) -> slice:
        return slice(*self.table.starts[self.number : self.number + 2])


class TokenTable(Sequence):
    """Rows in a folder: ids, for each the number of its weight, and where rows begin."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "facts.json").read_text())
        self.values = np.array(facts["weights"], dtype=np.float64)
        self.ids = _mapped(folder / "ids", facts["dtype"])
        self.codes, self.names = (_mapped(folder / name, "uint8") for name in ("codes", "names"))
        self.starts = _mapped(folder / "starts", "int64")
        self.name_starts = _mapped(folder / "name_starts", "int64")

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
    ids, weights, names = (open(folder / name, "wb") for name in ("ids", "codes", "names"))  # noqa: SIM115
    with ids, weights, names:
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
    """The numbers in a file, which may be empty (then they can't be mapped)."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
