"""Units and markers as ids by arithmetic, behind the ids of a text tokenizer.

    0 … T−1                  text, as the tokenizer numbers it
    T … T+K−1                units <0> … <K−1>
    then                     the markers, <sosp> and <eosp> first

So a text can never become a marker or a unit: it passes through the text tokenizer alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.units.sequence import EOSP, SOSP, check_range


class UnitVocabulary:
    """What all vocabularies share; `inventory` is the id of the units' inventory.

    Text pieces alone, until it is expanded (`unit_count` > 0).  Each kind adds what depends on its
    tokenizer: `is_text`, `encode_text`, `encode_prefix`, `encode_row`, `decode_text`, `name`,
    `save` and `load`.
    """

    markers: ClassVar[tuple[str, ...]]  # in the order of their ids
    unit_count: int
    inventory: str
    begin: int  # of a document
    end: int
    text_size: int  # ids below the first unit

    @property
    def size(self) -> int:
        """The number of ids in all."""
        return self.text_size + (self.unit_count + len(self.markers) if self.unit_count else 0)

    def expand(self, unit_count: int, inventory: str) -> Self:
        """Add `unit_count` units and the markers; once more by the same is the same vocabulary."""
        if self.unit_count and (self.unit_count, self.inventory) != (unit_count, inventory):
            raise UserError(
                f"vocabulary already holds {self.unit_count} units of {self.inventory}; "
                f"it can't also hold {inventory}"
            )
        return dataclasses.replace(self, unit_count=unit_count, inventory=inventory)

    def marker(self, name: str) -> int:
        """The id of one of `markers`.  Raises UserError before the vocabulary is expanded."""
        if not self.unit_count:
            raise UserError(
                "this vocabulary has no units and markers yet: expand it and its model first "
                "(notebook 05_vocabulary_expansion.ipynb)"
            )
        return self.text_size + self.unit_count + self.markers.index(name)

    def has_marker(self, name: str) -> bool:
        """Whether `name` is an id of its own."""
        return bool(self.unit_count) and name in self.markers

    @property
    def stops(self) -> list[int]:
        """The ids at which an answer is complete."""
        return [self.end, *(self.marker(m) for m in ("<eos>", "<eoa>") if self.has_marker(m))]

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a row: `stops` and `<eosp>`."""
        return frozenset(self.stops + ([self.marker(EOSP)] if self.unit_count else []))

    def is_unit(self, token: int) -> bool:
        """Whether an id is a unit."""
        return 0 <= token - self.text_size < self.unit_count

    def encode_units(self, units: np.ndarray) -> list[int]:
        """Units (n,) → `<sosp>` … `<eosp>` as ids, by adding the first unit's id."""
        start, end = self.marker(SOSP), self.marker(EOSP)
        check_range(units, self.unit_count)
        return [start, *(np.asarray(units, dtype=np.int64) + self.text_size).tolist(), end]

    def units_in(self, ids: Iterable[int]) -> np.ndarray:
        """The unit ids (n,) among token ids, everything else left out."""
        return np.array([i - self.text_size for i in ids if self.is_unit(i)], dtype=np.int64)

    def added_name(self, token: int) -> str:
        """A unit or marker as people write it."""
        number = token - self.text_size
        return f"<{number}>" if self.is_unit(token) else self.markers[number - self.unit_count]

    def write_facts(self, folder: Path, **more) -> None:
        """Write `vocabulary.json`."""
        facts = {"unit_count": self.unit_count, "inventory": self.inventory, "size": self.size}
        write_json(folder / "vocabulary.json", facts | more)

    def check_size(self, folder: Path) -> Self:
        """Raise UserError where `vocabulary.json` in `folder` tells another size."""
        said = read_json(folder / "vocabulary.json")["size"]
        if self.size != said:
            raise UserError(
                f"{folder}: the tokenizer makes {self.size} tokens, vocabulary.json says {said}: "
                "files of two runs?"
            )
        return self
