"""Unit tables → the cross-modal set: each pair of units and text, matched at random with a description that asks for one or the other.

What is random is a hash of the pair's id and the seed, so the same rows come out in any order and on any number of machines.  Columns pass
from table to table as they are; memory holds a batch, whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from speechgpt_lib.corpora import held_out as split
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.descriptions import draw, load_descriptions
from speechgpt_lib.instructions.duplicates import Duplicates, find_duplicates
from speechgpt_lib.instructions.parsing import marker_in
from speechgpt_lib.instructions.sets import (
    BATCH,
    CROSS_MODAL_SCHEMA,
    SetFacts,
    ShardWriter,
    finish,
    is_made,
    row_digest,
    split_lists,
)
from speechgpt_lib.runs.artefacts import hash_file, hash_json
from speechgpt_lib.units.inventory import check_inventory

_COLUMNS = ["id", "text", "voice", "split", "units"]


@dataclass(frozen=True)
class Pairing:
    """How pairs become rows.

    pairing: "one" asks each pair for a transcript or for speech, by chance (the paper); "both" for both.
    speaking_voices: only pairs of these voices are asked for speech (None: all).
    splits: splits of the tables that are used (None: all) and those that are held out; with none of these a hash of the words holds out
        `held_out_share` of the sentences.
    descriptions: the two lists to draw from; None takes the shipped ones.
    """

    seed: int = 0
    pairing: Literal["one", "both"] = "one"
    speaking_voices: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    held_out_splits: tuple[str, ...] = ()
    held_out_share: float = 0.002
    templates: str = "paper"
    descriptions: dict[str, tuple[str, ...]] | None = field(default=None, hash=False)

    def lists(self) -> dict[str, tuple[str, ...]]:
        return self.descriptions or {task: load_descriptions(task) for task in ("asr", "tts")}

    def rule(self) -> str:
        return (
            f"split {' or '.join(self.held_out_splits)} of the corpus"
            if self.held_out_splits
            else split.rule(self.held_out_share)
        )


def build_cross_modal(
    sources: Sequence[Path],
    out: Path,
    pairing: Pairing,
    *,
    inventory_id: str,
    unit_count: int,
    shards: slice = slice(None),
    source_facts: list[dict] | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> dict:
    """Write the set of all pairs in the unit tables `sources` (folders of `units-*.parquet`) into `out`; finished shards are kept.

    Args:
        shards: which shards this call is to make, as for the jobs of an array; all others are left alone.
        source_facts: name, licence and so on of the sources, for the data card.
        on_rows: told of rows as they are written.

    Returns:
        The summary, also in summary.json once every shard is there.

    Raises:
        UserError: a table is missing, damaged or of another inventory, or `out` holds shards of another set.
    """
    tables = [table for source in sources for table in unit_tables(source)]
    for table in tables:
        found = (
            (pyarrow.parquet.read_schema(table).metadata or {}).get(b"inventory", b"none").decode()
        )
        check_inventory(found, inventory_id, f"the set in {out}")
    settings = {name: value for name, value in vars(pairing).items() if name != "descriptions"} | {
        "lists": pairing.lists()
    }
    facts = SetFacts(
        "cross_modal", inventory_id, unit_count, pairing.templates, hash_json(settings)
    )
    chosen = range(len(tables))[shards]
    keys = {k: hash_json({"table": hash_file(tables[k])} | facts.metadata()) for k in chosen}
    missing = [k for k in chosen if not is_made(out, k, keys[k])]
    duplicates = find_duplicates(tables) if missing else Duplicates({})
    for k in missing:
        _write_shard(tables[k], k, out, pairing, facts, keys[k], duplicates, on_rows)
    return finish(
        out,
        len(tables),
        facts,
        source_facts or [{"path": str(s)} for s in sources],
        pairing.rule(),
        pairing=pairing.pairing,
    )


def unit_tables(folder: Path) -> list[Path]:
    """The shards of a unit table; `folder` is the table's, or what `speechgpt units extract` wrote."""
    folder = Path(folder).expanduser()
    folder = folder / "units" if (folder / "units").is_dir() else folder
    tables = sorted(folder.glob("units-*.parquet"))
    if not tables:
        raise UserError(
            f"no unit table in {folder}: run notebook 01_unit_extraction.ipynb or speechgpt units extract first"
        )
    return tables


def _write_shard(
    table: Path,
    number: int,
    out: Path,
    pairing: Pairing,
    facts: SetFacts,
    key: str,
    duplicates: Duplicates,
    on_rows: Callable | None,
) -> None:
    with ShardWriter(out, number, facts, key) as writer:
        lists = pairing.lists()
        for start, batch in _batches(table):
            keep, task, description, held_out = [], [], [], []
            ids, texts = _strings(batch["id"]), _strings(batch["text"])
            voices, splits = batch["voice"].to_pylist(), batch["split"].to_pylist()
            units = split_lists(batch["units"])
            for k, identity in enumerate(ids):
                if (
                    pairing.splits is not None
                    and splits[k] not in pairing.splits + pairing.held_out_splits
                ):
                    continue
                reason = _reason(
                    identity, texts[k], units[k], facts.unit_count
                ) or duplicates.reason(identity, table, start + k)
                if reason:
                    writer.refuse(str(table), f"row {start + k}", str(identity), *reason)
                    continue
                if pairing.held_out_splits:
                    out_of_training = splits[k] in pairing.held_out_splits
                else:
                    out_of_training = split.is_held_out(texts[k], pairing.held_out_share)
                for name in _tasks(identity, voices[k], pairing):
                    keep.append(k)
                    task.append(name)
                    description.append(draw(lists[name], name, f"{name}-{identity}", pairing.seed))
                    held_out.append(out_of_training)
            if keep:
                _add(writer, batch, keep, task, description, held_out)
            if on_rows is not None:
                on_rows(len(keep))


def _add(
    writer: ShardWriter,
    batch: pyarrow.RecordBatch,
    keep: list[int],
    task: list,
    description: list,
    held_out: list,
) -> None:
    taken = batch.select(["id", "text", "voice", "units"]).take(
        pyarrow.array(keep, pyarrow.int32())
    )
    identities = [
        f"{name}-{identity}" for name, identity in zip(task, taken["id"].to_pylist(), strict=True)
    ]
    columns = {
        "id": identities,
        "task": task,
        "description": description,
        "text": taken["text"],
        "voice": taken["voice"],
    }
    rows = pyarrow.table(columns | {"units": taken["units"]}).select(CROSS_MODAL_SCHEMA.names)
    mask = pyarrow.array(held_out)
    training = rows.filter(pyarrow.compute.invert(mask))
    writer.add(training)
    if any(held_out):
        writer.add(rows.filter(mask), held_out=True)
    units = [array for chunk in training["units"].chunks for array in split_lists(chunk)]
    texts = training["text"].to_pylist()
    tasks, descriptions = training["task"].to_pylist(), training["description"].to_pylist()
    counts = writer.counts
    counts.statistics.add(tasks, units=map(len, units), words=(len(text.split()) for text in texts))
    if units:
        counts.statistics.add_units(np.concatenate(units))
    for row in zip(tasks, descriptions, texts, units, strict=True):
        counts.digest += row_digest(row[:3], row[3])
    counts.digest %= 2**256


def _batches(table: Path) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    start = 0
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(BATCH, columns=_COLUMNS):
                yield start, batch
                start += batch.num_rows
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"{table} is damaged ({str(error).splitlines()[0][:120]}): delete it and extract its units again"
        ) from None


def _strings(column: pyarrow.Array) -> list[str | None]:
    """Texts of a column; None where the bytes are no UTF-8, which Parquet doesn't look at."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pyarrow.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _reason(
    identity: str | None, text: str | None, units: np.ndarray, unit_count: int
) -> tuple[str, str] | None:
    """Why a pair can't be used, as (reason, detail), or None."""
    if identity is None or text is None:
        return "broken UTF-8", "its id or text is missing or no UTF-8"
    if not text.strip():
        return "empty text", "there is no transcript"
    if len(units) == 0:
        return "no units", "there are no units"
    if units.min() < 0 or units.max() >= unit_count:
        bad = units[(units < 0) | (units >= unit_count)][0]
        return "unit out of range", f"unit {bad}, but the inventory has 0 to {unit_count - 1}"
    if strange := marker_in(text):
        return "marker in text", f"the transcript has {strange} in it"
    return None


def _tasks(identity: str, voice: str, pairing: Pairing) -> tuple[str, ...]:
    may_speak = pairing.speaking_voices is None or voice in pairing.speaking_voices
    if pairing.pairing == "both":
        return ("asr", "tts") if may_speak else ("asr",)
    return (draw(("asr", "tts") if may_speak else ("asr",), "task", identity, pairing.seed),)
