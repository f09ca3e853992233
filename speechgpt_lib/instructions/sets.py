"""The two SpeechInstruct sets on disk: cross-modal pairs with their descriptions, and chain-of-modality quadruplets.

    rows-00000.parquet …         training rows, a shard at a time
    held_out-00000.parquet …     rows whose sentence is kept out of training (cross-modal sets)
    quarantine-00000.parquet …   what could not be used: where it stood, why
    summary.json, CARD.md        counts, the set's hash, its data card; written when every shard is there

A table keeps what a row is made of, not its text: templates are applied when it is read, so both sets can be shown in any format.
A shard says in its metadata what it was made from, so a second start keeps what is finished and refuses to mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.card import write_card
from speechgpt_lib.instructions.statistics import Statistics
from speechgpt_lib.instructions.templates import Row, chain_row, cross_modal_row
from speechgpt_lib.runs.artefacts import atomic_path, read_json, write_json
from speechgpt_lib.units.inventory import check_inventory

Kind = Literal["cross_modal", "chain"]
_TEXT, _UNITS = pyarrow.string(), pyarrow.list_(pyarrow.int16())
CROSS_MODAL_SCHEMA = pyarrow.schema(
    [(n, _TEXT) for n in ("id", "task", "description", "text", "voice")] + [("units", _UNITS)]
)
CHAIN_SCHEMA = pyarrow.schema(
    [(n, _TEXT) for n in ("id", "format", "kind", "instruction", "response")]
    + [("instruction_units", _UNITS), ("response_units", _UNITS)]
)
VERBATIM = pyarrow.field(
    "verbatim", _TEXT
)  # in imported sets: a line that would be written differently from how it was found
SCHEMAS: dict[Kind, pyarrow.Schema] = {"cross_modal": CROSS_MODAL_SCHEMA, "chain": CHAIN_SCHEMA}
QUARANTINE_SCHEMA = pyarrow.schema(
    [(n, _TEXT) for n in ("source", "place", "id", "reason", "detail")]
)
MOST_UNITS = np.iinfo(np.int16).max + 1
BATCH = 4096


@dataclass(frozen=True)
class SetFacts:
    """What every shard of a set has in common; `settings` is a hash of whatever else decides its rows."""

    kind: Kind
    inventory: str
    unit_count: int
    templates: str = "paper"
    settings: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.unit_count <= MOST_UNITS:
            raise UserError(
                f"a set holds 1 to {MOST_UNITS} different units, the inventory has {self.unit_count}"
            )

    def metadata(self) -> dict[str, str]:
        return {name: str(value) for name, value in vars(self).items()}


@dataclass
class ShardCounts:
    """What is known of the rows of one or more shards.  `digest` is the sum of the SHA-256 of all training rows, modulo 2^256."""

    statistics: Statistics = field(default_factory=Statistics)
    digest: int = 0
    held_out: int = 0
    reasons: Counter = field(default_factory=Counter)

    def merge(self, other: ShardCounts) -> None:
        self.statistics.merge(other.statistics)
        self.digest = (self.digest + other.digest) % 2**256
        self.held_out += other.held_out
        self.reasons.update(other.reasons)

    def to_json(self) -> str:
        return json.dumps(
            {
                "statistics": self.statistics.to_json(),
                "digest": f"{self.digest:064x}",
                "held_out": self.held_out,
                "reasons": self.reasons,
            }
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> ShardCounts:
        values = json.loads(text)
        digest, reasons = int(values["digest"], 16), Counter(values["reasons"])
        return cls(Statistics.from_json(values["statistics"]), digest, values["held_out"], reasons)


def row_digest(texts: Sequence[str], *units: np.ndarray) -> int:
    """SHA-256 of what a row says: its texts and units (n,), but not its id, voice or place."""
    digest = hashlib.sha256("\x1f".join(texts).encode())
    for part in units:
        digest.update(b"\x1f" + part.astype("<i2").tobytes())
    return int.from_bytes(digest.digest(), "big")


# --- writing ------------------------------------------------------------------------------------------------------------------------
class ShardWriter:
    """Writes one shard of a set; all of it appears at once, at the end of the `with` block, the training rows last."""

    def __init__(
        self,
        folder: Path,
        number: int,
        facts: SetFacts,
        key: str,
        extra: pyarrow.Field | None = None,
    ):
        self.folder, self.number, self.facts, self.key = folder, number, facts, key
        self.schema = SCHEMAS[facts.kind].append(extra) if extra else SCHEMAS[facts.kind]
        self.counts, self._bad = ShardCounts(), []

    def __enter__(self) -> ShardWriter:
        self._stack = contextlib.ExitStack()
        self._rows = self._open("rows", self.schema)
        self._held_out: pyarrow.parquet.ParquetWriter | None = None
        return self

    def add(self, rows: pyarrow.Table, held_out: bool = False) -> None:
        """Rows in the set's schema.  Their statistics and digests are the caller's to keep in `counts`."""
        if held_out and self._held_out is None:
            self._held_out = self._open("held_out", self.schema)
        (self._held_out if held_out else self._rows).write_table(rows.cast(self.schema))
        self.counts.held_out += rows.num_rows if held_out else 0

    def refuse(self, source: str, place: str, identity: str, reason: str, detail: str) -> None:
        self._bad.append(
            {"source": source, "place": place, "id": identity, "reason": reason, "detail": detail}
        )
        self.counts.reasons[reason] += 1

    def __exit__(self, *error) -> bool | None:
        if error[0] is None:
            if self._bad:
                self._open("quarantine", QUARANTINE_SCHEMA).write_table(
                    pyarrow.Table.from_pylist(self._bad, QUARANTINE_SCHEMA)
                )
            self._rows.add_key_value_metadata({"counts": self.counts.to_json()})
        return self._stack.__exit__(*error)

    def _open(self, name: str, schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
        path = shard_path(self.folder, self.number, name)
        temporary = self._stack.enter_context(atomic_path(path))
        schema = schema.with_metadata(self.facts.metadata() | {"key": self.key})
        return self._stack.enter_context(
            pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd")
        )


def shard_path(folder: Path, number: int, name: str = "rows") -> Path:
    return folder / f"{name}-{number:05d}.parquet"


def is_made(folder: Path, number: int, key: str) -> bool:
    """Whether a shard is there; refuses one that was made from something else."""
    path = shard_path(folder, number)
    if not path.exists():
        return False
    found = _metadata(path).get(b"key", b"").decode()
    if found != key:
        raise UserError(
            f"{path} was made from other rows, settings or another inventory: choose another folder, or delete this one"
        )
    return True


def finish(
    folder: Path, shards: int, facts: SetFacts, sources: list[dict], split_rule: str, **more: object
) -> dict:
    """Add up the shards; when all `shards` are there, write summary.json and CARD.md.  Returns the summary."""
    strangers = {path.name for path in folder.glob("rows-*.parquet")} - {
        shard_path(folder, k).name for k in range(shards)
    }
    if strangers:
        raise UserError(
            f"{folder} holds {sorted(strangers)[0]}, which is no shard of this set: choose another folder"
        )
    made = [path for k in range(shards) if (path := shard_path(folder, k)).exists()]
    counts = ShardCounts()
    for path in made:
        metadata = _file_metadata(path)
        found = {name: metadata.get(name.encode(), b"").decode() for name in facts.metadata()}
        if found != facts.metadata():
            raise UserError(
                f"{path} was made with other settings or of another inventory ({found}): delete it and build the set again"
            )
        counts.merge(ShardCounts.from_json(metadata[b"counts"]))
    summary = {
        **facts.metadata(),
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
        write_card(folder / "CARD.md", summary)
    return summary


# --- reading ------------------------------------------------------------------------------------------------------------------------
def set_facts(folder: Path) -> SetFacts:
    """What kind of set lies in `folder`; a UserError where there is none, or a part of one only."""
    first = shard_path(Path(folder), 0)
    if not first.is_file():
        raise UserError(
            f"instruction set {folder} is missing: run notebooks 03 and 04, speechgpt instruct build, or instruct import"
        )
    if not (Path(folder) / "summary.json").is_file():
        raise UserError(
            f"{folder} is unfinished (no summary.json): start the command that was making it again, it goes on"
        )
    found = {
        k.decode(): v.decode() for k, v in _metadata(first).items() if not k.startswith(b"ARROW")
    }
    return SetFacts(
        found["kind"],
        found["inventory"],
        int(found["unit_count"]),
        found["templates"],
        found["settings"],
    )


def read_summary(folder: Path) -> dict:
    set_facts(folder)
    return read_json(Path(folder) / "summary.json")


def read_set(
    folder: Path, inventory_id: str | None = None, part: Literal["rows", "held_out"] = "rows"
) -> Iterator[dict]:
    """Stream the records of a set; units come as int64 arrays.  Refuses a set of another inventory than `inventory_id`."""
    for batch in read_batches(folder, inventory_id, part):
        units = [name for name in batch.schema.names if name.endswith("units")]
        arrays = {name: split_lists(batch[name]) for name in units}
        for k, record in enumerate(batch.drop_columns(units).to_pylist()):
            yield record | {name: arrays[name][k].astype(np.int64) for name in units}


def read_batches(
    folder: Path, inventory_id: str | None = None, part: str = "rows", size: int = 1024
) -> Iterator[pyarrow.RecordBatch]:
    """The same in Arrow batches of at most `size` rows."""
    facts = set_facts(folder)
    if inventory_id is not None:
        check_inventory(facts.inventory, inventory_id, f"the reader of {folder}")
    for shard in sorted(Path(folder).glob(f"{part}-*.parquet")):
        try:
            with pyarrow.parquet.ParquetFile(shard) as file:
                yield from file.iter_batches(size)
        except pyarrow.ArrowInvalid as error:
            raise UserError(
                f"{shard} is damaged ({str(error).splitlines()[0][:120]}): delete it and build the set again"
            ) from None


def split_lists(column: pyarrow.Array) -> list[np.ndarray]:
    """A column of lists → one array a row, without copying."""
    values = column.values.to_numpy(zero_copy_only=False)
    bounds = column.offsets.to_numpy()
    return [values[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def record_to_row(record: dict, templates: str = "paper") -> Row:
    """A record of either set as a row in the given templates."""
    if "task" in record:
        row = cross_modal_row(
            record["task"], record["description"], record["text"], record["units"], templates
        )
    else:
        parts = (
            record[name]
            for name in ("format", "instruction", "response", "instruction_units", "response_units")
        )
        row = chain_row(*parts, templates)
    return replace(row, name=record.get("id", ""))


def _metadata(path: Path) -> dict:
    try:
        return pyarrow.parquet.read_schema(path).metadata or {}
    except pyarrow.ArrowInvalid:
        raise UserError(
            f"{path} is damaged or half-written: delete it and build the set again"
        ) from None


def _file_metadata(path: Path) -> dict:
    return pyarrow.parquet.read_metadata(path).metadata or {}
