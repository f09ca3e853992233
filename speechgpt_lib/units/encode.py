"""Utterances → units, a shard at a time: batches by length, bad audio set aside, all counted.

What is batched with what is a function of the shard alone, so any number of processes makes the
same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.training.batches import fill_batches
from speechgpt_lib.units.features import PRECISIONS, FeatureEncoder, check_choice
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import Assigner
from speechgpt_lib.units.long_audio import MODES, RELEASE_CHUNK, encode_long
from speechgpt_lib.units.sequence import merge

CHECK_EVERY = 20  # with bf16, every twentieth batch is also encoded in fp32
WHOLE_S = 30.0  # seconds that are always encoded at once
READERS = 4  # threads that decode the next batch while this one is encoded


@dataclass(frozen=True)
class Extraction:
    """How utterances are encoded; the table records it, and tables made otherwise are not mixed in.

    `batch_s` is padded seconds a batch; 0: 16 on a CPU, where more doesn't help, and 400 elsewhere.
    """

    device: str = "cpu"
    precision: str = "fp32"
    batch_s: float = 0.0
    long_audio: str = "exact"
    attention_limit_s: float = 300.0

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("way to treat long audio", self.long_audio, MODES)

    @property
    def budget_s(self) -> float:
        """Seconds of padded audio in a batch."""
        return self.batch_s or (16.0 if self.device == "cpu" else 400.0)

    @property
    def limit(self) -> int:
        """Samples beyond which a recording is treated as long audio."""
        if self.long_audio == "release":
            return RELEASE_CHUNK
        return int(max(self.budget_s, WHOLE_S) * SAMPLE_RATE)

    def key(self) -> dict:
        """What units depend on, if only by rounding."""
        return asdict(self) | {"batch_s": self.budget_s}


@dataclass(frozen=True)
class Item:
    """An utterance still to be read: its columns, its length, and how to get its 16 kHz samples."""

    row: dict
    seconds: float
    read: Callable[[], np.ndarray] = field(repr=False)


@dataclass
class Counts:
    """What one or more shards came to.

    `near_ties` are frames whose two nearest centroids differ by less than 1e-4 of the distance.
    """

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
        """The sum with other counts, given by name."""
        return Counts(**{name: value + other.get(name, 0) for name, value in asdict(self).items()})


class ShardEncoder:
    """An inventory made ready on a device; with bf16, also in fp32 to count what rounding moves."""

    def __init__(self, inventory: UnitInventory, settings: Extraction):
        self.settings = settings

        def encoder(precision: str) -> FeatureEncoder:
            made = inventory.encoder, inventory.layer, settings.device, precision
            return FeatureEncoder(*made, inventory.normalize)

        self.encoder = encoder(settings.precision)
        self.reference = encoder("fp32") if settings.precision != "fp32" else None
        self.assign = Assigner(inventory.kmeans, settings.device)

    def encode(
        self, items: Sequence[Item], on_seconds: Callable[[float], None] | None = None
    ) -> tuple[list[dict], list[dict], Counts]:
        """(rows with `units` and `durations`, bad ones with `reason` and `detail`, counts).

        Rows come in the order of `items`; `on_seconds` is told the length of each batch done.
        """
        done: dict[int, dict] = {}
        bad: dict[int, dict] = {}
        counts = Counts()
        batches = plan_batches([item.seconds for item in items], self.settings.budget_s)
        with ThreadPoolExecutor(READERS) as readers:
            for k, batch in enumerate(_ahead(readers, items, batches)):
                good = {i: wave for i, wave in batch.items() if not isinstance(wave, UserError)}
                for i in batch.keys() - good.keys():
                    reason = getattr(batch[i], "reason", "unreadable")
                    bad[i] = items[i].row | {"reason": reason, "detail": str(batch[i])}
                if good:
                    made = self._encode_batch(list(good.values()), counts, k % CHECK_EVERY == 0)
                    done |= {i: items[i].row | row for i, row in zip(good, made, strict=True)}
                if on_seconds is not None:
                    on_seconds(sum(items[i].seconds for i in batch))
        counts.bad = len(bad)
        return [done[i] for i in sorted(done)], [bad[i] for i in sorted(bad)], counts

    def _encode_batch(self, waves: list[np.ndarray], counts: Counts, check: bool) -> list[dict]:
        """`units` and `durations` of each wave; what was met is added to `counts`."""
        frames, near = self.assign(self._features(self.encoder, waves, counts))
        if self.reference is not None and check:
            exact, _ = self.assign(self._features(self.reference, waves, Counts()))
            counts.checked_frames += sum(map(len, exact))
            missed = [int((a != b).sum()) for a, b in zip(frames, exact, strict=True)]
            counts.missed_frames += sum(missed)
        counts.near_ties += near
        counts.utterances += len(waves)
        counts.frames += sum(map(len, frames))
        rows = []
        for wave, ids in zip(waves, frames, strict=True):
            units, durations = merge(ids)
            rows.append({"units": units, "durations": durations})
            counts.seconds += len(wave) / SAMPLE_RATE
            counts.units += len(units)
        return rows

    def _features(
        self, encoder: FeatureEncoder, waves: list[np.ndarray], counts: Counts
    ) -> list[torch.Tensor]:
        if all(len(wave) <= self.settings.limit for wave in waves):
            return encoder(waves)
        mode, limit_s = self.settings.long_audio, self.settings.attention_limit_s
        found = [encode_long(encoder, wave, mode, limit_s) for wave in waves]
        counts.dropped_samples += sum(long.dropped for long in found)
        counts.approximate += sum(long.approximate for long in found)
        return [long.features for long in found]


def plan_batches(seconds: Sequence[float], budget_s: float) -> list[list[int]]:
    """Utterances of like length together, the shortest first (`training.batches`)."""
    return fill_batches(sorted(range(len(seconds)), key=seconds.__getitem__), seconds, budget_s)


def _ahead(
    readers: ThreadPoolExecutor, items: Sequence[Item], batches: list[list[int]]
) -> Iterator[dict[int, np.ndarray | UserError]]:
    """The waves of each batch, read while the one before is worked on; two are in memory."""
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
