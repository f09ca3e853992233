"""The utterance table → unit tables: merged units with durations, one shard for each of speech.

`units-00000.parquet` has the inventory's id and counts as metadata; `quarantine-00000.parquet` are
utterances of that shard that could not be read.  What is in a shard, and what is batched with what,
is a function of its speech, the inventory and the settings: however many processes make the table.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from speechgpt_lib.corpora import tables
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.runs.artefacts import atomic_path, read_json
from speechgpt_lib.runs.machine import keeping_memory
from speechgpt_lib.runs.processes import run_in_processes
from speechgpt_lib.training.batches import fill_batches
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.inventory import UnitInventory, check_inventory
from speechgpt_lib.units.kmeans import nearest
from speechgpt_lib.units.long_audio import RELEASE_CHUNK, encode_long
from speechgpt_lib.units.sequence import expand, merge

CHECK_EVERY = 40  # with bf16, every fortieth utterance by length is also encoded in fp32
WHOLE_S = 30.0  # seconds that are always encoded at once
READERS = 4  # threads that decode the next batch while this one is encoded
SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in tables.TEXT_COLUMNS]
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


@dataclass
class Counts:
    """What one or more shards came to; `near_ties` are those that `nearest` counts."""

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    units: int = 0
    near_ties: int = 0
    approximate: int = 0
    dropped_samples: int = 0
    checked_frames: int = 0
    missed_frames: int = 0
    bad: int = 0


def extract_units(
    corpus: Path,
    inventory: Path,
    out: Path,
    settings: ExtractionSettings,
    device: str = "cpu",
    shards: slice = slice(None),
    on_log: Callable[[dict], None] | None = None,
) -> dict:
    """Encode the utterance table `corpus` into `out`; shards that are there already are kept.

    `inventory` is the folder of a saved one, `shards` those that this call makes, as a job of an
    array does; `on_log` is told {shards, of, seconds} (of audio) after every shard.  Raises
    UserError where more than `settings.max_bad_share` of the utterances can't be read (a single one
    never counts).
    """
    jobs, limit = [], settings.max_bad_share
    for shard in tables.table_shards(corpus):  # NAME/utterances-00000 becomes units-NAME-00000
        folder = shard.parent.relative_to(corpus).parts[-1:]
        name = "-".join(("units", *folder, shard.name.removeprefix("utterances-")))
        jobs.append((shard, out / name))
    missing = [job for job in jobs[shards] if not job[1].exists()]
    encode = partial(encode_shard, inventory, settings, device)
    processes = torch.get_num_threads() if device == "cpu" else 1
    for done, seconds in enumerate(run_in_processes(encode, missing, processes), 1):
        if on_log is not None:
            on_log({"shards": done, "of": len(missing), "seconds": seconds})
    totals = shard_counts(out)
    share = totals.bad / max(1, totals.bad + totals.utterances)
    if share > limit and (totals.bad > 1 or limit == 0):
        cure = f"raise units.extraction.max_bad_share to {math.ceil(100 * share) / 100:.2f}"
        found = f"{totals.bad} utterances ({share:.1%}) could not be read, the limit is {limit:.1%}"
        raise UserError(f"{found}: see {out}/quarantine-*.parquet, or {cure}")
    always = dict.fromkeys(("utterances", "frames", "units"), 0)
    met = {k: v for k, v in asdict(totals).items() if v and k not in ("near_ties", "seconds")}
    frame_rate = read_json(inventory / "inventory.json")["frame_rate_hz"]
    rate = round(totals.units / max(1, totals.frames) * frame_rate, 2)
    return always | {"units_per_second": rate, "hours": round(totals.seconds / 3600, 3)} | met


def encode_shard(
    inventory: Path, settings: ExtractionSettings, device: str, job: tuple[Path, Path]
) -> float:
    """A shard of speech → its quarantine, then one of units, on one thread; returns its seconds."""
    (shard, target), threads = job, torch.get_num_threads()
    loaded, columns = UnitInventory.load(inventory), (*tables.TEXT_COLUMNS, "path")
    speech = list(tables.read_utterances(shard.parent, audio=True, shards=[shard]))
    if device == "cpu":
        torch.set_num_threads(1)
    found, counts = ShardEncoder(loaded, settings, device).encode(speech)
    torch.set_num_threads(threads)
    rows, bad = [], []
    for u, made in zip(speech, found, strict=True):
        row = {name: getattr(u, name) for name in columns} | made
        (rows if "units" in made else bad).append(row)
    if bad:
        quarantine = target.with_name(target.name.replace("units", "quarantine", 1))
        tables.write_quarantine(quarantine, bad)
    write_units(target, rows, counts, loaded.id)
    return counts.seconds


class ShardEncoder:
    """An inventory made ready on a device; with bf16, also in fp32 to count what rounding moves."""

    def __init__(self, inventory: UnitInventory, settings: ExtractionSettings, device: str = "cpu"):
        self.mode = settings.long_audio
        # Padded seconds a batch: on a CPU more don't help.
        self.budget_s = settings.batch_seconds or (16.0 if device == "cpu" else 400.0)
        parts, exact = (inventory.encoder, inventory.layer, device), settings.precision == "fp32"
        self.encoder = FeatureEncoder(*parts, settings.precision, inventory.normalize)
        self.reference = None if exact else FeatureEncoder(*parts, "fp32", inventory.normalize)
        self.centroids = torch.from_numpy(inventory.kmeans.centroids).to(device)

    def encode(self, speech: Sequence[tables.Utterance]) -> tuple[list[dict], Counts]:
        """Utterances (`seconds`, `read`) → `units`, `durations`, or `reason`, `detail`; counts."""
        with keeping_memory():
            return self._encode(speech)

    def _encode(self, speech: Sequence[tables.Utterance]) -> tuple[list[dict], Counts]:
        found, counts = {}, Counts()
        seconds = [u.seconds for u in speech]
        by_length = sorted(range(len(speech)), key=seconds.__getitem__)
        batches, checked = fill_batches(by_length, seconds, self.budget_s), by_length[::CHECK_EVERY]
        with ThreadPoolExecutor(READERS) as readers:
            reading = ({i: readers.submit(speech[i].read) for i in batch} for batch in batches)
            # In pairs: the next batch is read while this one is encoded; two are in memory.
            for batch, _ in pairwise(chain(reading, [None])):
                waves = {}
                for i, future in batch.items():
                    error = future.exception()
                    short = not error and len(future.result()) < self.encoder.window
                    if short or isinstance(error, UserError):
                        reason = "too_short" if short else getattr(error, "reason", "unreadable")
                        detail = f"{error or 'holds no frame of this encoder'}"
                        found[i] = {"reason": reason, "detail": detail}
                        counts.bad += 1
                    else:
                        waves[i] = future.result()
                if waves:
                    check = [k for k, i in enumerate(waves) if i in checked]
                    made = self._encode_batch(list(waves.values()), counts, check)
                    found |= zip(waves, made, strict=True)
        return [found[i] for i in range(len(speech))], counts

    def _encode_batch(self, waves: list[np.ndarray], counts: Counts, check: list) -> list[dict]:
        """`units` and `durations` of each wave; what was met, and missed by the waves numbered in
        `check`, is added to `counts`."""
        frames, near = nearest(self.centroids, self._features(self.encoder, waves, counts))
        if self.reference is not None and check:
            some = self._features(self.reference, [waves[k] for k in check], Counts())
            exact, _ = nearest(self.centroids, some)
            missed = np.concatenate([frames[k] for k in check]) != np.concatenate(exact)
            counts.checked_frames += len(missed)
            counts.missed_frames += int(missed.sum())
        counts.near_ties += near
        rows = []
        for wave, ids in zip(waves, frames, strict=True):
            units, durations = merge(ids)
            rows.append({"units": units, "durations": durations})
            counts.utterances += 1
            counts.seconds += len(wave) / SAMPLE_RATE
            counts.frames += len(ids)
            counts.units += len(units)
        return rows

    def _features(self, encoder: FeatureEncoder, waves: list, counts: Counts) -> Sequence:
        at_once = int(max(self.budget_s, WHOLE_S) * SAMPLE_RATE)
        if max(map(len, waves)) <= (RELEASE_CHUNK if self.mode == "release" else at_once):
            return encoder(waves)
        found = (encode_long(encoder, wave, self.mode) for wave in waves)
        features, dropped, approximate = zip(*found, strict=True)
        counts.dropped_samples += sum(dropped)
        counts.approximate += sum(approximate)
        return features


def write_units(path: Path, rows: list[dict], counts: Counts, inventory_id: str) -> None:
    """One shard of units; the inventory's id and the counts go into its metadata."""
    metadata = {"inventory": inventory_id, "counts": json.dumps(asdict(counts))}
    table = pyarrow.Table.from_pylist(rows, SCHEMA.with_metadata(metadata))
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def shard_counts(folder: Path) -> Counts:
    """The counts of all shards in `folder` together."""
    total = Counter()
    for shard in sorted(folder.glob("units-*.parquet")):
        with reading(shard, "delete it and run its step again"):
            total.update(json.loads(tables.read_metadata(shard)["counts"]))
    return Counts(**total)


def read_units(
    folder: Path, inventory_id: str | None = None, where: dict[str, object] | None = None
) -> Iterator[UnitRow]:
    """Stream the rows of a unit table; `where` maps a column to the value or values to keep.

    Raises UserError where the table is missing or of another inventory than `inventory_id`.
    """
    kept = [(c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()]
    shards = sorted(Path(folder).glob("units-*.parquet"))
    if not shards:
        raise UserError(f"no unit table in {folder}: run notebook 01_unit_extraction.ipynb first")
    for shard in shards:
        if inventory_id is not None:
            found = tables.read_metadata(shard).get("inventory", "none")
            check_inventory(found, inventory_id, f"the reader of {shard}")
        with reading(shard, "delete it and run its step again"):
            for row in pyarrow.parquet.read_table(shard, filters=kept or None).to_pylist():
                arrays = {k: np.array(row[k], dtype=np.int64) for k in ("units", "durations")}
                yield UnitRow(**row | arrays)
