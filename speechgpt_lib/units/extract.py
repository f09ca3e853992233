"""Utterances → unit tables: merged units with durations, in Parquet shards that carry the inventory's id.

Utterances are encoded one by one, so that no padding can change a unit; shards are spread over processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from speechgpt_lib.corpora.lab import run_in_processes
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.units.sequence import expand

_TEXT = ("id", "text", "answer", "kind", "voice", "split")
SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in _TEXT]
    + [("units", pyarrow.list_(pyarrow.int16())), ("durations", pyarrow.list_(pyarrow.int16()))]
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


def extract_units(corpus: Path, inventory: Path, inventory_id: str, work: Path, processes: int = 2) -> dict:
    """Encode every utterance of `corpus` into `work`, one shard of units a shard of speech; whole shards are kept on resume."""
    shards = sorted(corpus.glob("*.parquet"))
    if not shards:
        raise UserError(f"no utterance table in {corpus}: run notebook 01_unit_extraction.ipynb first")
    jobs = [(shard, inventory, inventory_id, work / shard.name.replace("utterances", "units")) for shard in shards]
    for _ in run_in_processes(_encode_shard, [job for job in jobs if not job[3].exists()], processes):
        pass
    counts = [(len(row.units), int(row.durations.sum())) for row in read_units(work, inventory_id)]
    units, frames = (int(sum(column)) for column in zip(*counts, strict=True))
    return {
        "utterances": len(counts),
        "frames": frames,
        "units": units,
        "units_per_second": round(units / frames * 50, 2),
    }


def _encode_shard(job: tuple[Path, Path, str, Path]) -> None:
    import torch

    from speechgpt_lib.units.inventory import UnitInventory

    shard, folder, inventory_id, target = job
    torch.set_num_threads(1)
    inventory = UnitInventory.load(folder)
    rows = []
    for utterance in read_utterances(shard.parent, audio=True, only=shard.name):
        units, durations = inventory.encode(utterance.wave)
        rows.append({name: getattr(utterance, name) for name in _TEXT} | {"units": units, "durations": durations})
    table = pyarrow.Table.from_pylist(rows, SCHEMA.with_metadata({"inventory": inventory_id}))
    with atomic_path(target) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def read_units(folder: Path, inventory_id: str | None = None, where: dict[str, object] | None = None) -> Iterator[UnitRow]:
    """Stream the rows of a unit table; `where` maps a column to the value or values to keep.

    Raises UserError where the table is missing or its units are of another inventory than `inventory_id`.
    """
    from speechgpt_lib.units.inventory import check_inventory

    shards = sorted(Path(folder).glob("*.parquet"))
    if not shards:
        raise UserError(f"no unit table in {folder}: run notebook 01_unit_extraction.ipynb first")
    filters = [(c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()] or None
    for shard in shards:
        if inventory_id is not None:
            found = (pyarrow.parquet.read_schema(shard).metadata or {}).get(b"inventory", b"none").decode()
            check_inventory(found, inventory_id, f"the reader of {shard}")
        for row in pyarrow.parquet.read_table(shard, filters=filters).to_pylist():
            row["units"], row["durations"] = (np.array(row[name], dtype=np.int64) for name in ("units", "durations"))
            yield UnitRow(**row)
