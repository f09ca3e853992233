"""The two SpeechInstruct sets as tables: cross-modal pairs with their descriptions, and chain-of-modality quadruplets.

A table keeps what a row is made of, not its text: templates are applied when it is read, so both sets can be shown in any format.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.descriptions import choose_description
from speechgpt_lib.instructions.templates import CHAIN_FORMATS, Row, chain_row, cross_modal_row
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.units.extract import UnitRow
from speechgpt_lib.units.inventory import check_inventory

_UNITS = pyarrow.list_(pyarrow.int16())
CROSS_MODAL_SCHEMA = pyarrow.schema([(n, pyarrow.string()) for n in ("id", "task", "description", "text", "voice")] + [("units", _UNITS)])
CHAIN_SCHEMA = pyarrow.schema(
    [(n, pyarrow.string()) for n in ("id", "format", "kind", "instruction", "response")]
    + [("instruction_units", _UNITS), ("response_units", _UNITS)]
)


def cross_modal_records(rows: Iterable[UnitRow], speaking_voice: str, seed: int) -> Iterator[dict]:
    """One ASR record for every pair, and one TTS record where the voice is the one that shall speak.

    The description is a function of task, id and seed: the same in any order and any sharding.
    """
    for row in rows:
        for task in ("asr", "tts") if row.voice == speaking_voice else ("asr",):
            identity = f"{task}-{row.id}"
            description = choose_description(task, identity, seed)
            yield {
                "id": identity,
                "task": task,
                "description": description,
                "text": row.text,
                "voice": row.voice,
                "units": row.units,
            }


def chain_records(
    dialogues: Sequence[tuple[str, str, str, str, np.ndarray]],
    responses: dict[str, np.ndarray],
    shares: dict[str, float],
    seed: int,
) -> Iterator[dict]:
    """Quadruplets in the four formats.

    Args:
        dialogues: (id, kind, instruction, response, units of the spoken instruction).
        responses: response text → units of the spoken response.
        shares: format → share of the records; each record's format is a function of its id and the seed.
    """
    bounds = np.cumsum([shares.get(name, 0.0) for name in CHAIN_FORMATS])
    for identity, kind, instruction, response, units in dialogues:
        digest = hashlib.sha256(f"{seed} {identity}".encode()).digest()
        draw = int.from_bytes(digest[:7], "big") / 2**56
        chosen = CHAIN_FORMATS[min(int(np.searchsorted(bounds, draw, side="right")), len(CHAIN_FORMATS) - 1)]
        yield {
            "id": identity,
            "format": chosen,
            "kind": kind,
            "instruction": instruction,
            "response": response,
            "instruction_units": units,
            "response_units": responses[response],
        }


def write_set(path: Path, records: Iterable[dict], schema: pyarrow.Schema, inventory_id: str) -> int:
    """Write records to one Parquet file, a thousand at a time; returns how many."""
    schema, count, buffer = schema.with_metadata({"inventory": inventory_id}), 0, []
    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for record in records:
            buffer.append(record)
            count += 1
            if len(buffer) == 1000:
                writer.write_table(pyarrow.Table.from_pylist(buffer, schema))
                buffer = []
        writer.write_table(pyarrow.Table.from_pylist(buffer, schema))
    return count


def read_set(path: Path, inventory_id: str) -> Iterator[dict]:
    """Stream the records of a set; units come as int64 arrays.  Refuses a set of another inventory."""
    if not path.is_file():
        raise UserError(f"instruction set {path} is missing: run notebooks 03 and 04 first")
    with pyarrow.parquet.ParquetFile(path) as file:
        found = (file.schema_arrow.metadata or {}).get(b"inventory", b"none").decode()
        check_inventory(found, inventory_id, f"the reader of {path}")
        for batch in file.iter_batches(1000):
            for record in batch.to_pylist():
                yield {k: np.array(v, dtype=np.int64) if k.endswith("units") else v for k, v in record.items()}


def record_to_row(record: dict, templates: str = "paper") -> Row:
    """A record of either set as a row in the given templates."""
    if "task" in record:
        return cross_modal_row(record["task"], record["description"], record["text"], record["units"], templates)
    return chain_row(
        record["format"],
        record["instruction"],
        record["response"],
        record["instruction_units"],
        record["response_units"],
        templates,
    )


def split_counts(records: Iterable[dict], key: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record[key]] = counts.get(record[key], 0) + 1
    return dict(sorted(counts.items()))


def shuffled(items: list, seed: int) -> list:
    return random.Random(seed).sample(items, len(items))
