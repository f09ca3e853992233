"""The lab's speech → unit tables: merged units with durations, in Parquet shards that carry the inventory's id."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from speechgpt_lib.corpora.lab import run_in_processes
from speechgpt_lib.corpora.tables import decode, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import FRAME_RATE
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.units.encode import Counts, Extraction, Item, ShardEncoder
from speechgpt_lib.units.inventory import UnitInventory, check_inventory
from speechgpt_lib.units.sequence import expand

_TEXT = ("id", "text", "answer", "kind", "voice", "split")
SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in _TEXT]
    + [("units", pyarrow.list_(pyarrow.int16())), ("durations", pyarrow.list_(pyarrow.int32()))]
)


@dataclass(frozen=True)
class UnitRow:
    """One utterance as merged units (n,) and their durations in 20 ms frames (n,)."""

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


def extract_units(
    corpus: Path, inventory: Path, inventory_id: str, work: Path, processes: int = 2
) -> dict:
    """Encode every utterance of the lab's `corpus` into `work`, a shard of units a shard of speech; whole shards are kept on resume."""
    shards = sorted(corpus.glob("*.parquet"))
    if not shards:
        raise UserError(
            f"no utterance table in {corpus}: run notebook 01_unit_extraction.ipynb first"
        )
    jobs = [
        (shard, inventory, inventory_id, work / shard.name.replace("utterances", "units"))
        for shard in shards
    ]
    for _ in run_in_processes(
        _encode_shard, [job for job in jobs if not job[3].exists()], processes
    ):
        pass
    totals = shard_counts(work)
    per_second = round(totals.units / totals.frames * FRAME_RATE, 2)
    return {
        "utterances": totals.utterances,
        "frames": totals.frames,
        "units": totals.units,
        "units_per_second": per_second,
    }


def _encode_shard(job: tuple[Path, Path, str, Path]) -> None:
    shard, folder, inventory_id, target = job
    torch.set_num_threads(1)
    encoder = ShardEncoder(UnitInventory.load(folder), Extraction())
    items = [
        Item(
            {name: getattr(u, name) for name in _TEXT},
            u.seconds,
            functools.partial(decode, u.audio),
        )
        for u in read_utterances(shard.parent, audio="bytes", only=shard.name)
    ]
    rows, bad, counts = encoder.encode(items)
    if bad:  # speech that was made here
        raise UserError(
            f"{len(bad)} utterances of {shard} are broken, such as {bad[0]['id']}: {bad[0]['detail']}; make the corpus again"
        )
    write_units(target, rows, counts, inventory_id)


def write_units(
    path: Path, rows: list[dict], counts: Counts, inventory_id: str, **facts: str
) -> None:
    """One shard of units; the inventory's id, the counts and other `facts` go into its metadata."""
    metadata = {"inventory": inventory_id, "counts": json.dumps(asdict(counts)), **facts}
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows, SCHEMA.with_metadata(metadata)), temporary
        )


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

    Raises UserError where the table is missing or its units are of another inventory than `inventory_id`.
    """
    shards = sorted(Path(folder).glob("units-*.parquet"))
    if not shards:
        raise UserError(f"no unit table in {folder}: run notebook 01_unit_extraction.ipynb first")
    filters = [
        (c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()
    ] or None
    for shard in shards:
        if inventory_id is not None:
            found = (
                (pyarrow.parquet.read_schema(shard).metadata or {})
                .get(b"inventory", b"none")
                .decode()
            )
            check_inventory(found, inventory_id, f"the reader of {shard}")
        for row in pyarrow.parquet.read_table(shard, filters=filters).to_pylist():
            row["units"], row["durations"] = (
                np.array(row[name], dtype=np.int64) for name in ("units", "durations")
            )
            yield UnitRow(**row)
