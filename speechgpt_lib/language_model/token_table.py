"""Token rows on disk, for sets that no memory holds: written one by one, read where needed.

A row in memory is two lists of Python numbers, some 40 bytes a token; the nine million rows of the
released sets would take 100 GB in every process.  Here a token takes 3 bytes, mapped from a file,
and a row that nobody reads is a number.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechgpt_lib.language_model.rows import TokenRow


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a `TokenTable`, read when it is asked for; to be used as a `TokenRow`."""

    table: TokenTable
    number: int

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        return self._tokens["id"].tolist()

    @property
    def weights(self) -> list[float]:
        """The loss weight of each token."""
        return self.table.weights[self._tokens["weight"]].tolist()

    @property
    def name(self) -> str:
        """Where the row comes from."""
        start, end = self.table.starts[self.number : self.number + 2, 1]
        return self.table.names[start:end].tobytes().decode()

    @property
    def _tokens(self) -> np.ndarray:
        start, end = self.table.starts[self.number : self.number + 2, 0]
        return self.table.tokens[start:end]


class TokenTable(Sequence):
    """Rows in a folder: tokens (an id and the number of its weight), and where rows begin."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "facts.json").read_text())
        self.weights = np.array(facts["weights"], dtype=np.float64)
        self.tokens = _mapped(folder / "tokens", [("id", facts["id"]), ("weight", "uint8")])
        self.names = _mapped(folder / "names", "uint8")
        self.starts = _mapped(folder / "starts", "int64").reshape(-1, 2)  # of tokens and names

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> TableRow:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return TableRow(self, number % len(self))


def write_table(folder: Path, rows: Iterable[TokenRow], vocabulary_size: int) -> TokenTable:
    """Write `rows`, whose weights have at most 256 different values, into a new `folder`."""
    folder.mkdir(parents=True)
    kind = np.min_scalar_type(max(0, vocabulary_size - 1)).name
    codes: dict[float, int] = {}
    starts = array("q", [0, 0])
    with open(folder / "tokens", "wb") as tokens, open(folder / "names", "wb") as names:
        for row in rows:
            made = np.empty(len(row), [("id", kind), ("weight", "uint8")])
            made["id"] = row.ids
            made["weight"] = [codes.setdefault(w, len(codes)) for w in row.weights]
            tokens.write(made.tobytes())
            starts.append(starts[-2] + len(row))
            starts.append(starts[-2] + names.write(row.name.encode()))
    (folder / "starts").write_bytes(starts.tobytes())
    (folder / "facts.json").write_text(json.dumps({"id": kind, "weights": list(codes)}))
    return TokenTable(folder)


def _mapped(path: Path, dtype) -> np.ndarray:
    """What a file holds, which may be empty (then it can't be mapped)."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
