"""Segments in Parquet shards: written one by one, read back as a stream of row groups.

A prepared folder holds `segments-00000.parquet`, …, `quarantine.parquet` (path, id, reason, detail) and, once all of it is there,
`summary.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from speechgpt_lib.corpora.segments import Segment, Skipped
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import atomic_path

_TEXT = pyarrow.string()
SCHEMA = pyarrow.schema(
    [
        ("id", _TEXT),
        ("path", _TEXT),
        ("start", pyarrow.float64()),
        ("end", pyarrow.float64()),
        ("sample_rate", pyarrow.int32()),
    ]
    + [(name, _TEXT) for name in ("text", "speaker", "language", "split")]
)
QUARANTINE_SCHEMA = pyarrow.schema([(name, _TEXT) for name in ("path", "id", "reason", "detail")])
ROW_GROUP = 4096
SUMMARY = "summary.json"
QUARANTINE = "quarantine.parquet"


def write_rows(path: Path, rows: Iterable[Segment | Skipped], schema: pyarrow.Schema) -> None:
    """Write rows in groups of `ROW_GROUP`, atomically; `rows` may be a stream of any length."""
    rows = iter(rows)
    with (
        atomic_path(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        while group := [
            dict(zip(schema.names, astuple(row), strict=True)) for row in islice(rows, ROW_GROUP)
        ]:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def table_shards(folder: Path | str) -> list[Path]:
    """The shards of a prepared folder in order; a UserError where there are none, or not all."""
    folder = Path(folder).expanduser()
    shards = sorted(folder.glob("segments-*.parquet"))
    if not (folder / SUMMARY).is_file():
        found = f"only {len(shards)} shards and no {SUMMARY}" if shards else "nothing prepared"
        raise UserError(
            f"{folder} holds {found}: run speechgpt corpora prepare CORPUS ROOT -o {folder}; it goes on where it stopped"
        )
    return shards


def iterate_table(folder: Path | str, shards: Sequence[Path] | None = None) -> Iterator[Segment]:
    """Stream the segments of a prepared folder in order; `shards`, some of `table_shards(folder)`, limits it to those."""
    for shard in table_shards(folder) if shards is None else shards:
        yield from (Segment(**row) for row in _stream(shard, SCHEMA))


def iterate_quarantine(folder: Path | str) -> Iterator[Skipped]:
    """Stream what `prepare` could not use."""
    path = Path(folder).expanduser() / QUARANTINE
    if not path.is_file():
        raise UserError(f"no {path}: run speechgpt corpora prepare first")
    yield from (Skipped(**row) for row in _stream(path, QUARANTINE_SCHEMA))


def _stream(path: Path, schema: pyarrow.Schema) -> Iterator[dict]:
    again = "delete the folder and run speechgpt corpora prepare again"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema):
                found = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f"{path} has the columns {found}; expected {', '.join(schema.names)}: {again}"
                )
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        what = str(error).split("\n")[0].split(". ")[0]
        raise UserError(f"{path} is damaged or half-written ({what}): {again}") from None
