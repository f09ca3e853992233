"""The utterance table → unit tables: merged units with durations, a shard of units for every shard
of speech.

    units-00000.parquet …        units and durations, written when whole; the metadata carry the
    inventory's id quarantine-00000.parquet …   utterances of that shard that could not be read,
    each with a reason

Which process makes a shard doesn't matter: its content is a function of the shard, the inventory
and the settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from speechgpt_lib.corpora.tables import (
    TEXT_COLUMNS,
    read_utterances,
    table_shards,
    write_quarantine,
)
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import FRAME_RATE
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.runs.processes import run_in_processes
from speechgpt_lib.units.encode import Counts, Extraction, Item, ShardEncoder
from speechgpt_lib.units.inventory import UnitInventory, check_inventory
from speechgpt_lib.units.sequence import expand

SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in TEXT_COLUMNS]
    + [("units", pyarrow.list_(pyarrow.int16())), ("durations", pyarrow.list_(pyarrow.int32()))]
)


@dataclass(frozen=True)
class UnitRow:
    """One utterance as merged units (n,) and their durations in frames (n,)."""

    id: str
    text: str
    answer: str
    kind: str
    voice: str
    split: str
    units: np.ndarray
    durations: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """One unit id a frame."""
        return expand(self.units, self.durations)


@dataclass(frozen=True)
class ShardJob:
    """One shard: utterances to read, the inventory's folder, how to encode, and where the units
    go."""

    shard: Path
    inventory: Path
    settings: Extraction
    target: Path

    @property
    def quarantine(self) -> Path:
        """Where utterances go that can't be read."""
        return self.target.with_name(self.target.name.replace("units", "quarantine", 1))


def extract_units(
    corpus: Path,
    inventory: Path,
    out: Path,
    settings: Extraction | None = None,
    *,
    shards: slice = slice(None),
    max_bad_share: float = 0.05,
    on_log: Callable[[dict], None] | None = None,
) -> dict:
    """Encode the utterance table `corpus` into `out`; shards that are there already are kept.

    inventory: folder of a saved unit inventory.
    shards: which shards this call makes, as a job of an array does; all others are left alone.
    on_log: told {shards, of, seconds} (seconds of audio) after every shard.

    Raises UserError where more than `max_bad_share` of the utterances can't be read (a single one
    never counts).
    """
    settings = settings or Extraction()
    plan = plan_shards(corpus, inventory, out, settings)
    missing = [job for job in plan[shards] if not job.target.exists()]
    processes = torch.get_num_threads() if settings.device == "cpu" else 1
    for done, seconds in enumerate(run_in_processes(encode_shard, missing, processes), 1):
        if on_log is not None:
            on_log({"shards": done, "of": len(missing), "seconds": seconds})
    totals = shard_counts(out)
    share = totals.bad / max(1, totals.bad + totals.utterances)
    if share > max_bad_share and (totals.bad > 1 or max_bad_share == 0):
        limit = f"units.extraction.max_bad_share to {math.ceil(100 * share) / 100:.2f}"
        raise UserError(
            f"{totals.bad} utterances ({share:.1%}) could not be read, the limit is "
            f"{max_bad_share:.1%}: see {out}/quarantine-*.parquet, or raise {limit}"
        )
    return {
        "utterances": totals.utterances,
        "frames": totals.frames,
        "units": totals.units,
        "units_per_second": round(totals.units / max(1, totals.frames) * FRAME_RATE, 2),
    } | {k: v for k, v in asdict(totals).items() if v and k not in ("near_ties", "seconds")}


def plan_shards(corpus: Path, inventory: Path, out: Path, settings: Extraction) -> list[ShardJob]:
    """A job for each shard of speech, in order; `NAME/utterances-00000` becomes
    `units-NAME-00000`."""
    jobs = []
    for shard in table_shards(corpus):
        folder, number = (
            shard.parent.relative_to(corpus).name,
            shard.stem.removeprefix("utterances-"),
        )
        name = "-".join(["units", *[folder] * bool(folder), number])
        jobs.append(ShardJob(shard, inventory, settings, out / f"{name}.parquet"))
    return jobs


def encode_shard(job: ShardJob) -> float:
    """Encode one shard on one thread and return its seconds of audio; its quarantine is written
    first."""
    threads = torch.get_num_threads()
    inventory = UnitInventory.load(job.inventory)
    items = [
        Item(
            {name: getattr(u, name) for name in TEXT_COLUMNS} | {"path": u.path}, u.seconds, u.read
        )
        for u in read_utterances(job.shard.parent, audio=True, shards=[job.shard])
    ]
    if job.settings.device == "cpu":
        torch.set_num_threads(1)
    rows, bad, counts = ShardEncoder(inventory, job.settings).encode(items)
    torch.set_num_threads(threads)
    if bad:
        write_quarantine(job.quarantine, bad)
    write_units(job.target, rows, counts, inventory.id)
    return counts.seconds


def write_units(path: Path, rows: list[dict], counts: Counts, inventory_id: str) -> None:
    """One shard of units; the inventory's id and the counts go into its metadata."""
    metadata = {"inventory": inventory_id, "counts": json.dumps(asdict(counts))}
    table = pyarrow.Table.from_pylist(rows, SCHEMA.with_metadata(metadata))
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def unit_tables(folder: Path) -> list[Path]:
    """The shards of a unit table in order; UserError where there are none."""
    tables = sorted(Path(folder).glob("units-*.parquet"))
    if not tables:
        raise UserError(f"no unit table in {folder}: run notebook 01_unit_extraction.ipynb first")
    return tables


def shard_counts(folder: Path) -> Counts:
    """The counts of all shards in `folder` together."""
    counts = Counts()
    for shard in sorted(Path(folder).glob("units-*.parquet")):
        counts = counts.add(json.loads(pyarrow.parquet.read_schema(shard).metadata[b"counts"]))
    return counts


def read_units(
    folder: Path, inventory_id: str | None = None, where: dict[str, object] | None = None
) -> Iterator[UnitRow]:
    """Stream the rows of a unit table; `where` maps a column to the value or values to keep.

    Raises UserError where the table is missing or its units are of another inventory than
    `inventory_id`.
    """
    kept = [(c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()]
    for shard in unit_tables(folder):
        if inventory_id is not None:
            metadata = pyarrow.parquet.read_schema(shard).metadata or {}
            found = metadata.get(b"inventory", b"none").decode()
            check_inventory(found, inventory_id, f"the reader of {shard}")
        for row in pyarrow.parquet.read_table(shard, filters=kept or None).to_pylist():
            for name in ("units", "durations"):
                row[name] = np.array(row[name], dtype=np.int64)
            yield UnitRow(**row)
