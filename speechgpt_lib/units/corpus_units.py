"""A prepared corpus on disk → unit tables: shard by shard, resumable, in one process or many, on one machine or an array of jobs.

    units-00000.parquet …        units and durations of one shard of the utterance table, written when whole
    quarantine-00000.parquet …   utterances of that shard that could not be read, each with a reason
    summary.json                 counts over all shards, written when every shard is there

A shard says in its metadata what it was made from (its shard of utterances, the inventory, the settings), so a second start keeps what is
finished and refuses to mix.  Which process makes a shard doesn't matter: its content is a function of these three.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch

from speechgpt_lib.corpora.segment_tables import (
    QUARANTINE_SCHEMA,
    iterate_table,
    table_shards,
    write_rows,
)
from speechgpt_lib.corpora.segments import Segment, Skipped, read_segment
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import FRAME_RATE
from speechgpt_lib.runs.artefacts import hash_file, hash_json, read_json, write_json
from speechgpt_lib.training.launch import end_with_parent
from speechgpt_lib.units.encode import Extraction, Item, ShardEncoder
from speechgpt_lib.units.extract import shard_counts, write_units
from speechgpt_lib.units.inventory import UnitInventory

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Job:
    """One shard: utterances to read, units to write, and the key that says what they are made from."""

    table: Path
    root: Path
    units: Path
    key: str
    inventory_id: str

    @property
    def quarantine(self) -> Path:
        return self.units.with_name(self.units.name.replace("units", "quarantine"))


def extract_corpus(
    table: Path,
    root: Path,
    inventory: Path,
    out: Path,
    settings: Extraction,
    processes: int = 1,
    shards: slice = slice(None),
    max_bad_share: float = 0.05,
    on_seconds: Progress | None = None,
) -> dict:
    """Encode the utterances of `table` (made by `prepare`), whose sound files lie below `root`, into `out`.

    Args:
        inventory: folder of a saved unit inventory.
        processes: worker processes of one machine; each gets an equal share of the threads.
        shards: which shards this call is to make, as for the jobs of an array; all others are left alone.
        on_seconds: told of seconds of audio as they are done.

    Returns:
        The summary; `shards` says how many of all are there.

    Raises:
        UserError: shards in `out` were made from something else, no such table, or more than `max_bad_share` of the utterances unreadable.
    """
    jobs = plan_jobs(table, root, inventory, out, settings)
    missing = [job for job in jobs[shards] if not is_made(job)]
    for _ in run_jobs(missing, inventory, settings, processes, on_seconds):
        pass
    made = [job for job in jobs if job.units.exists()]
    counts = shard_counts(out)
    summary = {
        "inventory": jobs[0].inventory_id,
        "shards": f"{len(made)} of {len(jobs)}",
        "settings": settings.key(),
        **asdict(counts),
    }
    summary["hours"] = round(counts.seconds / 3600, 4)
    summary["units_per_second"] = (
        round(counts.units / counts.frames * FRAME_RATE, 3) if counts.frames else None
    )
    summary["miss_rate"] = (
        counts.missed_frames / counts.checked_frames if counts.checked_frames else None
    )
    if len(made) == len(jobs):
        write_json(out / "summary.json", summary)
    if counts.bad > max(
        max_bad_share * (counts.bad + counts.utterances), 1 if max_bad_share else 0
    ):
        share = counts.bad / (counts.bad + counts.utterances)
        how = f"see {out}/quarantine-*.parquet, or accept them with --max-bad-share {math.ceil(100 * share) / 100:.2f}"
        raise UserError(
            f"{counts.bad} utterances ({share:.1%}) could not be read, the limit is {max_bad_share:.1%}: {how}"
        )
    return summary


def plan_jobs(
    table: Path, root: Path, inventory: Path, out: Path, settings: Extraction
) -> list[Job]:
    """The jobs in order, one a shard of `table`."""
    found = table_shards(table)
    if not root.is_dir():
        raise UserError(f"no corpus at {root}: give the folder that holds its sound files")
    identity = read_json(inventory / "inventory.json")["id"]
    out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for path in found:
        key = hash_json(
            {"table": hash_file(path), "inventory": identity, "settings": settings.key()}
        )
        jobs.append(Job(path, root, out / path.name.replace("segments", "units"), key, identity))
    strangers = {path.name for path in out.glob("units-*.parquet")} - {
        job.units.name for job in jobs
    }
    if strangers:
        raise UserError(
            f"{out} holds {sorted(strangers)[0]}, which is no shard of {table}: choose another --out"
        )
    return jobs


def is_made(job: Job) -> bool:
    """Whether the shard is there; refuses one that was made from other utterances, by another inventory or in another way."""
    if not job.units.exists():
        return False
    try:
        metadata = pyarrow.parquet.read_schema(job.units).metadata or {}
    except pyarrow.ArrowInvalid:
        raise UserError(
            f"{job.units} is damaged or half-written: delete it and start again, it will be made anew"
        ) from None
    if metadata.get(b"key", b"").decode() != job.key:
        other = json.loads(metadata.get(b"settings", b"{}"))
        found = f"inventory {metadata.get(b'inventory', b'?').decode()}, settings {other}"
        raise UserError(
            f"{job.units} was made from something else ({found}): choose another --out, or delete it"
        )
    return True


def run_jobs(
    jobs: list[Job],
    inventory: Path,
    settings: Extraction,
    processes: int,
    on_seconds: Progress | None,
) -> Iterator[None]:
    """Make the shards, in this process or in several."""
    if processes <= 1 or len(jobs) <= 1:
        _prepare(inventory, settings, None, None)
        for job in jobs:
            yield make_shard(job, on_seconds)
        return
    context = multiprocessing.get_context("spawn")
    done, told = context.Value("d", 0.0), 0.0
    threads = max(1, (os.cpu_count() or 1) // processes)
    with context.Pool(
        min(processes, len(jobs)), _prepare, (inventory, settings, threads, done)
    ) as pool:
        results = pool.imap_unordered(make_shard, jobs)
        for _ in jobs:
            while True:
                try:
                    results.next(timeout=0.5)
                    break
                except multiprocessing.TimeoutError:
                    pass
                finally:
                    if on_seconds is not None and done.value > told:
                        on_seconds(done.value - told)
                        told = done.value
            yield


_worker: dict = {}


def _prepare(inventory: Path, settings: Extraction, threads: int | None, done) -> None:
    """Make this process ready for shards.  `threads` and `done`, the seconds of audio of all workers, are given in a pool only."""
    if threads is not None:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
        end_with_parent()
        torch.set_num_threads(threads)
    _worker.update(
        encoder=ShardEncoder(UnitInventory.load(inventory), settings), settings=settings, done=done
    )


def make_shard(job: Job, on_seconds: Progress | None = None) -> None:
    """Encode one shard; its quarantine is written first, so a shard that is there is complete."""
    done = _worker["done"]

    def tell(seconds: float) -> None:
        with done.get_lock():
            done.value += seconds

    items = [item_of(segment, job.root) for segment in iterate_table(job.table.parent, [job.table])]
    rows, bad, counts = _worker["encoder"].encode(items, on_seconds if done is None else tell)
    write_rows(
        job.quarantine,
        [Skipped(*(row[name] for name in QUARANTINE_SCHEMA.names)) for row in bad],
        QUARANTINE_SCHEMA,
    )
    write_units(
        job.units,
        rows,
        counts,
        job.inventory_id,
        key=job.key,
        settings=json.dumps(_worker["settings"].key()),
    )


def item_of(segment: Segment, root: Path) -> Item:
    """A segment as the unit table names it; what a corpus on disk doesn't have is empty."""
    row = {
        "id": segment.id,
        "text": segment.text or "",
        "answer": "",
        "kind": "speech",
        "voice": segment.speaker,
        "split": segment.split,
    }
    row |= {"path": segment.path, "language": segment.language}
    return Item(row, segment.seconds or 0.0, functools.partial(read_segment, root, segment))
