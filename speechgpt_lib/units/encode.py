"""Utterances → units, a shard at a time: batches by length under a budget of seconds, bad audio set aside, everything counted.

What is batched with what is a function of the shard alone, so any number of processes makes the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.training.buckets import fill_batches
from speechgpt_lib.units.features import PRECISIONS, FeatureEncoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import Assigner
from speechgpt_lib.units.long_audio import MODES, RELEASE_CHUNK, encode_long
from speechgpt_lib.units.sequence import merge

CHECK_EVERY = 20  # with bf16, every twentieth batch is also encoded in fp32
WHOLE_S = 30.0  # seconds that are always encoded at once
READERS = 4  # threads that decode the next batch while this one is encoded


@dataclass(frozen=True)
class Extraction:
    """How utterances are encoded.  All of it is recorded in the table, and a table made in another way is not mixed with."""

    device: str = "cpu"
    precision: str = "fp32"
    batch_s: float = 0.0  # seconds of padded audio in a batch; 0 = 16 on a CPU, where more doesn't help, and 400 elsewhere
    long_audio: str = "exact"
    attention_limit_s: float = 300.0

    def __post_init__(self) -> None:
        for value, allowed, what in (
            (self.precision, PRECISIONS, "precision"),
            (self.long_audio, MODES, "way to treat long audio"),
        ):
            if value not in allowed:
                raise UserError(f"unknown {what} {value!r}: expected one of {', '.join(allowed)}")

    @property
    def budget_s(self) -> float:
        return self.batch_s or (16.0 if self.device == "cpu" else 400.0)

    @property
    def limit(self) -> int:
        """Samples beyond which a recording is treated as long audio."""
        return (
            RELEASE_CHUNK
            if self.long_audio == "release"
            else int(max(self.budget_s, WHOLE_S) * SAMPLE_RATE)
        )

    def key(self) -> dict:
        """What units depend on, if only by rounding."""
        return asdict(self) | {"batch_s": self.budget_s}


@dataclass(frozen=True)
class Item:
    """An utterance that is still to be read: its columns, its length in seconds, and how to get its samples (float32 at 16 kHz)."""

    row: dict
    seconds: float
    read: Callable[[], np.ndarray] = field(repr=False)


@dataclass
class Counts:
    """What one or more shards came to.  `near_ties` are frames whose two nearest centroids differ by less than 1e-4 of the distance."""

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

    def add(self, other: dict) -> Counts:
        return Counts(**{name: value + other.get(name, 0) for name, value in asdict(self).items()})


class ShardEncoder:
    """An inventory made ready on a device.  `bad` collects what could not be read as (row, reason, detail)."""

    def __init__(self, inventory: UnitInventory, settings: Extraction):
        self.settings = settings
        parts = {"device": settings.device, "normalize": inventory.normalize}
        self.encoder = FeatureEncoder(
            inventory.encoder, inventory.layer, precision=settings.precision, **parts
        )
        self.reference = (
            FeatureEncoder(inventory.encoder, inventory.layer, **parts)
            if settings.precision != "fp32"
            else None
        )
        self.assign = Assigner(inventory.kmeans, settings.device)

    def encode(
        self, items: Sequence[Item], on_seconds: Callable[[float], None] | None = None
    ) -> tuple[list[dict], list[dict], Counts]:
        """Rows with `units` and `durations` in the order of `items`, rows of bad audio with `reason` and `detail`, and counts."""
        done: dict[int, dict] = {}
        bad: dict[int, dict] = {}
        counts = Counts()
        batches = plan_batches([item.seconds for item in items], self.settings.budget_s)
        with ThreadPoolExecutor(READERS) as readers:
            for k, batch in enumerate(_ahead(readers, items, batches)):
                good = {i: wave for i, wave in batch.items() if not isinstance(wave, UserError)}
                for i in batch.keys() - good.keys():
                    bad[i] = items[i].row | {
                        "reason": getattr(batch[i], "reason", "unreadable"),
                        "detail": str(batch[i]),
                    }
                if good:
                    done |= self._encode_batch(good, items, counts, check=k % CHECK_EVERY == 0)
                if on_seconds is not None:
                    on_seconds(sum(items[i].seconds for i in batch))
        counts.bad = len(bad)
        return [done[i] for i in sorted(done)], [bad[i] for i in sorted(bad)], counts

    def _encode_batch(
        self, waves: dict[int, np.ndarray], items: Sequence[Item], counts: Counts, check: bool
    ) -> dict[int, dict]:
        features = self._features(self.encoder, list(waves.values()), counts)
        frames, near = self.assign(features)
        counts.near_ties += near
        if self.reference is not None and check:
            exact, _ = self.assign(self._features(self.reference, list(waves.values()), Counts()))
            counts.checked_frames += sum(map(len, exact))
            counts.missed_frames += sum(
                int((a != b).sum()) for a, b in zip(frames, exact, strict=True)
            )
        rows = {}
        for (i, wave), ids in zip(waves.items(), frames, strict=True):
            units, durations = merge(ids)
            rows[i] = items[i].row | {"units": units, "durations": durations}
            counts.utterances, counts.seconds = (
                counts.utterances + 1,
                counts.seconds + len(wave) / SAMPLE_RATE,
            )
            counts.frames, counts.units = counts.frames + len(ids), counts.units + len(units)
        return rows

    def _features(
        self, encoder: FeatureEncoder, waves: list[np.ndarray], counts: Counts
    ) -> list[torch.Tensor]:
        if all(len(wave) <= self.settings.limit for wave in waves):
            return encoder(waves)
        found = [
            encode_long(encoder, wave, self.settings.long_audio, self.settings.attention_limit_s)
            for wave in waves
        ]
        counts.dropped_samples += sum(long.dropped for long in found)
        counts.approximate += sum(long.approximate for long in found)
        return [long.features for long in found]


def plan_batches(seconds: Sequence[float], budget_s: float) -> list[list[int]]:
    """Utterances of like length together, the shortest first (`training.buckets`)."""
    return fill_batches(sorted(range(len(seconds)), key=seconds.__getitem__), seconds, budget_s)


def _ahead(
    readers: ThreadPoolExecutor, items: Sequence[Item], batches: list[list[int]]
) -> Iterator[dict[int, np.ndarray | UserError]]:
    """The waves of each batch, read while the one before is worked on; never more than two batches are in memory."""
    waiting: list[dict] = []
    for batch in batches:
        waiting.append({i: readers.submit(_read, items[i]) for i in batch})
        if len(waiting) == 2:
            yield {i: future.result() for i, future in waiting.pop(0).items()}
    for futures in waiting:
        yield {i: future.result() for i, future in futures.items()}


def _read(item: Item) -> np.ndarray | UserError:
    try:
        return item.read()
    except UserError as error:
        return error
