"""The two SpeechInstruct sets on disk: cross-modal pairs, and chain-of-modality quadruplets.

    rows-00000.parquet …         training rows, a shard at a time
    held_out-00000.parquet …     rows whose sentence is kept out of training
    quarantine-00000.parquet …   what could not be used: where it stood, why
    summary.json, CARD.md        counts, the set's hash, its data card; when every shard is there

A table keeps what a row is made of, so a set can be shown in any templates.  A shard says in its
metadata what it was made from: a second start keeps what is finished and refuses to mix.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import records
from speechgpt_lib.instructions.card import render
from speechgpt_lib.instructions.parsing import BadRow
from speechgpt_lib.instructions.records import Record
from speechgpt_lib.instructions.statistics import Statistics
from speechgpt_lib.instructions.templates import Row, chain_row, cross_modal_row
from speechgpt_lib.runs.artefacts import atomic_path, read_json, write_json, write_text
from speechgpt_lib.units.inventory import check_inventory

QUARANTINE = ("source", "place", "id", "reason", "detail")
QUARANTINE_SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in QUARANTINE])
MOST_UNITS = np.iinfo(np.int16).max + 1
T = TypeVar("T")


@dataclass(frozen=True)
class SetFacts:
    """What all shards of a set share; `settings` is a hash of whatever else decides its rows."""

    kind: records.Kind
    inventory: str
    unit_count: int
    templates: str = "paper"
    settings: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.unit_count <= MOST_UNITS:
            raise UserError(
                f"{self.unit_count} units: a set holds 1 to {MOST_UNITS} different ones"
            )

    def metadata(self) -> dict[str, str]:
        """The facts as text, for the metadata of a shard."""
        return {name: str(value) for name, value in vars(self).items()}


@dataclass
class ShardCounts:
    """Counts of one or more shards; `digest` adds up the SHA-256 of training rows, mod 2^256."""

    statistics: Statistics = field(default_factory=Statistics)
    digest: int = 0
    held_out: int = 0
    reasons: Counter = field(default_factory=Counter)

    def merge(self, other: ShardCounts) -> None:
        """Add the counts of another shard."""
        self.statistics.merge(other.statistics)
        self.digest = (self.digest + other.digest) % 2**256
        self.held_out += other.held_out
        self.reasons.update(other.reasons)

    def to_json(self) -> str:
        """The counts as the metadata of a shard hold them."""
        numbers = {"statistics": self.statistics.to_json(), "digest": f"{self.digest:064x}"}
        return json.dumps(numbers | {"held_out": self.held_out, "reasons": self.reasons})

    @classmethod
    def from_json(cls, text: str) -> ShardCounts:
        """The inverse of `to_json`."""
        values = json.loads(text)
        digest, reasons = int(values["digest"], 16), Counter(values["reasons"])
        return cls(Statistics.from_json(values["statistics"]), digest, values["held_out"], reasons)


class ShardWriter:
    """Writes a shard; all of it appears when the `with` block ends, the training rows last."""

    def __init__(self, folder: Path, number: int, facts: SetFacts, key: str, *more: pyarrow.Field):
        self.folder, self.number, self.facts, self.key = folder, number, facts, key
        self.schema = pyarrow.schema([*records.SCHEMAS[facts.kind], *more])
        self.counts, self._bad, self._held_out = ShardCounts(), [], None

    def __enter__(self) -> ShardWriter:
        self._stack = contextlib.ExitStack()
        self._rows = self._open("rows", self.schema)
        return self

    def add(self, rows: pyarrow.Table, held_out: bool = False) -> None:
        """Write rows in the set's schema; training rows are counted."""
        rows, counts = rows.cast(self.schema), self.counts
        if held_out:
            self._held_out = self._held_out or self._open("held_out", self.schema)
            self._held_out.write_table(rows)
            counts.held_out += rows.num_rows
            return
        self._rows.write_table(rows)
        for measure in records.RECORDS[self.facts.kind].measures:  # also where there are no rows
            counts.statistics.lengths.setdefault(measure, Counter())
        for record in (r for batch in rows.to_batches() for r in records.to_records(batch)):
            counts.statistics.add(record)
            counts.digest = (counts.digest + records.row_digest(record)) % 2**256

    def refuse(self, source: str, place: str, identity: str, bad: BadRow) -> None:
        """Set a row aside, with its place and the reason."""
        row = (source, place, identity, bad.reason, bad.detail)
        self._bad.append(dict(zip(QUARANTINE, row, strict=True)))
        self.counts.reasons[bad.reason] += 1

    def __exit__(self, *error) -> bool | None:
        if error[0] is None:
            if self._bad:
                bad = pyarrow.Table.from_pylist(self._bad, QUARANTINE_SCHEMA)
                self._open("quarantine", QUARANTINE_SCHEMA).write_table(bad)
            self._rows.add_key_value_metadata({"counts": self.counts.to_json()})
        return self._stack.__exit__(*error)

    def _open(self, name: str, schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
        path = self._stack.enter_context(atomic_path(_path(self.folder, self.number, name)))
        schema = schema.with_metadata(self.facts.metadata() | {"key": self.key})
        writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
        return self._stack.enter_context(writer)


def in_shards(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; an empty one where there are none, as a set has a shard at least."""
    items = iter(items)
    yield list(islice(items, size))
    while shard := list(islice(items, size)):
        yield shard


def is_made(folder: Path, number: int, key: str) -> bool:
    """Whether a shard is there; refuses one that was made from something else."""
    path = _path(folder, number)
    if path.exists() and _metadata(path).get("key") != key:
        cure = "choose another folder, or delete this one"
        raise UserError(f"{path} was made from other rows, settings or another inventory: {cure}")
    return path.exists()


def finish(
    folder: Path, shards: int, facts: SetFacts, sources: list[dict], split_rule: str, **more: object
) -> dict:
    """Add up the shards; when all are there, write summary.json and CARD.md.

    Returns the summary, with `more` at its end.
    """
    paths = [_path(folder, k) for k in range(shards)]
    if strangers := sorted(set(folder.glob("rows-*.parquet")) - set(paths)):
        raise UserError(f"{strangers[0]} is no shard of this set: choose another folder")
    made = [path for path in paths if path.exists()]
    counts, wanted = ShardCounts(), facts.metadata()
    for path in made:
        metadata = _metadata(path)
        found = {name: metadata.get(name, "") for name in wanted}
        if found != wanted:
            what = "with other settings or of another inventory"
            raise UserError(f"{path} was made {what} ({found}): delete it and build the set again")
        counts.merge(ShardCounts.from_json(metadata["counts"]))
    summary = {
        **wanted,
        "unit_count": facts.unit_count,
        "shards": f"{len(made)} of {shards}",
        "table_hash": f"{counts.digest:064x}",
        "held_out": counts.held_out,
        "held_out_rule": split_rule,
        "quarantined": dict(sorted(counts.reasons.items())),
        "sources": sources,
        "statistics": counts.statistics.summary(),
        **more,
    }
    if len(made) == shards:
        write_json(folder / "summary.json", summary)
        write_text(folder / "CARD.md", render(summary))
    return summary


def read_summary(folder: Path) -> dict:
    """The summary of a set; a UserError where there is none, or a part of one only."""
    if not _path(Path(folder), 0).is_file():
        cure = "run notebooks 03 and 04, speechgpt instruct build, or instruct import"
        raise UserError(f"instruction set {folder} is missing: {cure}")
    if not (Path(folder) / "summary.json").is_file():
        raise UserError(f"{folder} is unfinished (no summary.json): start its command again")
    return read_json(Path(folder) / "summary.json")


def set_facts(folder: Path) -> SetFacts:
    """What kind of set lies in `folder`."""
    summary = read_summary(folder)
    return SetFacts(**{f.name: summary[f.name] for f in fields(SetFacts)})


def read_set(
    folder: Path, inventory_id: str | None = None, part: Literal["rows", "held_out"] = "rows"
) -> Iterator[Record]:
    """Stream the records of a set; refuses a set of another inventory than `inventory_id`."""
    facts = set_facts(folder)
    if inventory_id is not None:
        check_inventory(facts.inventory, inventory_id, f"the reader of {folder}")
    for shard in sorted(Path(folder).glob(f"{part}-*.parquet")):
        for batch in records.read_batches(shard, 1024):
            yield from records.to_records(batch)


def record_to_row(record: Record, templates: str = "paper") -> Row:
    """A record of either set as a row in the given templates."""
    if isinstance(record, records.CrossModalRecord):
        parts = (record.task, record.description, record.text, record.units)
        row = cross_modal_row(*parts, templates)
    else:
        texts = (record.format, record.instruction, record.response)
        row = chain_row(*texts, record.instruction_units, record.response_units, templates)
    return replace(row, name=record.id)


def _path(folder: Path, number: int, name: str = "rows") -> Path:
    return folder / f"{name}-{number:05d}.parquet"


def _metadata(path: Path) -> dict[str, str]:
    try:
        found = pyarrow.parquet.read_metadata(path).metadata or {}
    except pyarrow.ArrowInvalid:
        raise UserError(
            f"{path} is damaged or half-written: delete it, build the set again"
        ) from None
    return {name.decode(): value.decode() for name, value in found.items()}
