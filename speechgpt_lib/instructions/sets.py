"""The two SpeechInstruct sets on disk: cross-modal pairs, and chain-of-modality quadruplets.

Shards are rows-00000.parquet (training), held_out-… (sentences kept out of it) and quarantine-…
(what could not be used: where it stood, why).  Their metadata say what they were made from, so a
second start keeps what is finished.  The last one adds summary.json and its data card, CARD.md.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from speechgpt_lib.corpora.held_out import same_words
from speechgpt_lib.corpora.tables import read_metadata
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.instructions import records
from speechgpt_lib.instructions.card import Statistics, render
from speechgpt_lib.instructions.descriptions import TASKS
from speechgpt_lib.instructions.parsing import BadRow, check_text, check_units
from speechgpt_lib.instructions.records import CrossModalRecord, Record, Seen
from speechgpt_lib.instructions.templates import CHAIN_FORMATS, Row, chain_row, cross_modal_row
from speechgpt_lib.runs.artefacts import atomic_path, read_json, write_json, write_text
from speechgpt_lib.units.inventory import check_inventory


@dataclass(frozen=True)
class SetFacts:
    """What all shards of a set share; `settings` is a hash of whatever else decides its rows."""

    kind: str  # cross_modal or chain
    inventory: str
    unit_count: int
    templates: str = "paper"
    settings: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.unit_count <= 1 << 15:  # they are kept in 16 bits
            raise UserError(f"{self.unit_count} units: a set holds 1 to 32,768 of them")

    def metadata(self) -> dict[str, str]:
        """The facts as text, for the metadata of a shard."""
        return {name: str(value) for name, value in vars(self).items()}


class ShardWriter(contextlib.ExitStack):
    """Writes a shard; all of it appears when the `with` block ends, the training rows last."""

    def __init__(self, folder: Path, number: int, facts: SetFacts, key: str, *more: pyarrow.Field):
        super().__init__()
        self.folder, self.number, self.facts, self.key = folder, number, facts, key
        self.schema = pyarrow.schema([*records.SCHEMAS[facts.kind], *more])
        self.counts = Statistics(lengths={s: Counter() for s in records.RECORDS[facts.kind].sizes})
        self._bad: list[dict[str, str]] = []
        self._rows, self._held_out = self._open("rows", self.schema), None

    def add(self, rows: pyarrow.Table, held_out: Sequence[bool] = ()) -> None:
        """Write rows in the set's schema; those that aren't held out are counted."""
        rows, counts = rows.cast(self.schema), self.counts
        if any(held_out):
            mask = pyarrow.array(held_out)
            self._held_out = self._held_out or self._open("held_out", self.schema)
            self._held_out.write_table(rows.filter(mask))
            counts.held_out += sum(held_out)
            rows = rows.filter(pyarrow.compute.invert(mask))
        self._rows.write_table(rows)
        for batch in rows.to_batches():
            for record in records.to_records(batch):
                counts.add(record)

    def refuse(self, source: str, place: str, identity: str, bad: BadRow) -> None:
        """Set a row aside, with its place and the reason."""
        row = {"source": source, "place": place, "id": identity}
        self._bad.append(row | {"reason": bad.reason, "detail": bad.detail})
        self.counts.reasons[bad.reason] += 1

    def __exit__(self, *error) -> bool | None:
        if error[0] is None:
            if self._bad:
                bad = pyarrow.Table.from_pylist(self._bad)
                self._open("quarantine", bad.schema).write_table(bad)
            self._rows.add_key_value_metadata({"counts": json.dumps(self.counts.to_json())})
        return super().__exit__(*error)

    def _open(self, name: str, schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
        path = self.enter_context(atomic_path(_path(self.folder, self.number, name)))
        schema = schema.with_metadata(self.facts.metadata() | {"key": self.key})
        writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
        return self.enter_context(writer)


def in_shards(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items; an empty one where there are none, as a set has a shard at least."""
    items = iter(items)
    yield list(islice(items, size))
    while shard := list(islice(items, size)):
        yield shard


def is_made(folder: Path, number: int, key: str) -> bool:
    """Whether a shard is there; refuses one that was made from something else."""
    path = _path(folder, number)
    if path.exists() and read_metadata(path).get("key") != key:
        cure = "choose another folder, or delete this one"
        raise UserError(f"{path} was made from other rows, settings or another inventory: {cure}")
    return path.exists()


def finish(
    folder: Path, shards: int, facts: SetFacts, sources: Sequence[dict], split_rule: str, **more
) -> dict:
    """Add up the shards; returns the summary, with `more`, written once every shard is there."""
    counts, wanted, made = Statistics(), facts.metadata(), sorted(folder.glob("rows-*.parquet"))
    if strangers := set(made) - {_path(folder, k) for k in range(shards)}:
        raise UserError(f"{min(strangers)} is no shard of this set: choose another folder")
    for path in made:
        metadata = read_metadata(path)
        if (found := {name: metadata.get(name, "") for name in wanted}) != wanted:
            what = f"made with other settings or of another inventory ({found})"
            raise UserError(f"{path} was {what}: delete it and build the set again")
        with reading(path, "delete it and build the set again"):
            counts.merge(json.loads(metadata["counts"]))
    summary = {**wanted, "unit_count": facts.unit_count, "shards": f"{len(made)} of {shards}"}
    summary |= {"table_hash": f"{counts.digest:064x}", "held_out": counts.held_out}
    summary |= {"held_out_rule": split_rule, "quarantined": dict(sorted(counts.reasons.items()))}
    summary |= {"sources": list(sources), "statistics": counts.summary(), **more}
    if len(made) == shards:
        write_json(folder / "summary.json", summary)
        write_text(folder / "CARD.md", render(summary))
    return summary


def read_summary(folder: Path, inventory_id: str | None = None) -> dict:
    """The summary of a set; a UserError where it is missing, unfinished or of another inventory."""
    if not _path(folder, 0).is_file():
        cure = "run notebooks 03 and 04, speechgpt instruct build, or instruct import"
        raise UserError(f"instruction set {folder} is missing: {cure}")
    if not (path := folder / "summary.json").is_file():
        raise UserError(f"{folder} is unfinished (no summary.json): start its command again")
    summary = read_json(path)
    if inventory_id is not None:
        check_inventory(summary["inventory"], inventory_id, f"the reader of {folder}")
    return summary


def read_set(folder: Path, inventory_id: str | None = None, part: str = "rows") -> Iterator[Record]:
    """Stream the records of a set, or its `part` "held_out"; refuses one of another inventory."""
    read_summary(folder, inventory_id)
    for shard in sorted(folder.glob(f"{part}-*.parquet")):
        with reading(shard, "build the set again"):
            for batch in records.read_batches(shard, 1024):
                yield from records.to_records(batch)


def check_set(folder: Path, inventory_id: str | None = None) -> list[str]:
    """All that is wrong with the set in `folder`, with places; at most 100 things."""
    summary, found, ids = read_summary(folder, inventory_id), Statistics(), Seen()
    problems: list[str] = []
    try:
        held_out = {_words(record) for record in read_set(folder, part="held_out")}
        for number, record in enumerate(read_set(folder)):
            found.add(record)
            reasons = list(_faults(record, summary["unit_count"]))
            if not ids.is_new(record.id):
                reasons.append(f"id {record.id!r} stands more than once")
            if _words(record) in held_out:
                reasons.append("its sentence is held out")
            problems += [f"{folder}, row {number}: {reason}" for reason in reasons]
            if len(problems) >= 100:
                return problems[:100]
    except UserError as error:
        return [*problems, str(error)]
    if f"{found.digest:064x}" != summary["table_hash"]:
        problems.append(f"{folder}: another table hash than in summary.json: was a shard changed?")
    if (rows := found.groups.total()) != (wanted := summary["statistics"]["rows"]):
        problems.append(f"{folder}: it has {rows} rows, summary.json says {wanted}")
    return problems


def record_to_row(record: Record, templates: str = "paper") -> Row:
    """A record of either set as a row in the given templates."""
    r = record
    if isinstance(r, CrossModalRecord):
        row = cross_modal_row(r.task, r.description, r.text, r.units, templates)
    else:
        units = (r.instruction_units, r.response_units)
        row = chain_row(r.format, r.instruction, r.response, *units, templates)
    return replace(row, name=r.id)


def _path(folder: Path, number: int, name: str = "rows") -> Path:
    return folder / f"{name}-{number:05d}.parquet"


def _words(record: Record) -> int:
    sentence = record.text if isinstance(record, CrossModalRecord) else record.instruction
    return hash(same_words(sentence))


def _faults(record: Record, unit_count: int) -> Iterator[str]:
    """What is wrong with a row: its task or format, and the first that is with its content."""
    group, texts, shown = record.content
    if group not in (*TASKS, *CHAIN_FORMATS):
        yield f"unknown task or format {group!r}"
    try:
        for what, text in texts.items():
            check_text(text, what)
        if group != "text_text":
            check_units(np.concatenate(shown), unit_count)
    except BadRow as bad:
        yield bad.detail
