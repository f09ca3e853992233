"""Merged units → speech: generator and duration predictor together, as one object on disk and in memory.

    vocoder/{vocoder.json, generator.safetensors, durations.safetensors}

It knows the inventory whose units it was trained on and refuses those of another.  It speaks one utterance, many at a time in padded
batches, or a stream of units as they come; the sound is the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.runs.artefacts import atomic_path, read_json, write_json
from speechgpt_lib.training.buckets import fill_batches
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.inventory import check_inventory
from speechgpt_lib.units.sequence import check_range, expand
from speechgpt_lib.vocoder.durations import DurationPredictor, check_speed, scale_durations
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.streaming import GeneratorStream, SpeechStream

LONGEST_S = 3600.0  # of one utterance: more is a mistake
# Batches are padded to a multiple of so many frames.  For every length that is new to it a CPU writes its convolutions anew, which takes
# as long as a second of speech; so few lengths should occur.
GRID = 32
PIECE = 500  # frames; whatever is longer than that is spoken piece by piece, so memory doesn't grow with the length
STREAM_PIECE = 10  # frames (0.2 s) at a time in a stream
BATCH_S = {
    "cpu": 0.0,
    "cuda": 240.0,
}  # seconds in a padded batch; on a CPU one utterance at a time is fastest
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

Units = np.ndarray | list[int]


@dataclass(frozen=True)
class Vocoder:
    """Turns units of the inventory `inventory` (its id) into speech.

    speakers: their names, if it knows several.  drops_negative: whether negative units are left out, as fairseq does, instead of refused.
    precision: fp32, or bf16 (faster; how far it sounds off is measured by benchmarks/vocoder.py).  Both trained parts are made ready for
    inference in place: weight norm folded, dropout off, on `device`.
    """

    generator: UnitGenerator
    durations: DurationPredictor
    inventory: str
    settings: VocoderSettings
    speakers: tuple[str, ...] = ()
    drops_negative: bool = False
    device: str = "cpu"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        generator, durations = self.generator.unit_count, self.durations.dict.num_embeddings
        if generator != durations:
            raise UserError(
                f"the generator knows {generator} units but the duration predictor {durations}: they belong apart"
            )
        known = 0 if self.generator.spkr is None else self.generator.spkr.num_embeddings
        if known != len(self.speakers):
            raise UserError(
                f"the generator knows {known} speakers but {len(self.speakers)} have names: they belong apart"
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"unknown precision {self.precision!r}: choose {' or '.join(PRECISIONS)}"
            )
        self.generator.fold_weight_norm().to(
            self.device, PRECISIONS[self.precision]
        ).eval().requires_grad_(False)
        # In double precision, so that no rounding to whole frames depends on what else is in the batch.
        self.durations.to(self.device, torch.float64).eval().requires_grad_(False)

    @property
    def unit_count(self) -> int:
        return self.generator.unit_count

    def synthesize(
        self,
        units: Units,
        durations: Units | None = None,
        speed: float = 1.0,
        inventory: str | None = None,
        speaker: str | None = None,
    ) -> np.ndarray:
        """Speak merged units (n,).

        Args:
            durations: frames (n,) of 20 ms each; predicted when None.
            speed: 2 speaks in half the time.
            inventory: id of the inventory the units are of, if it is known; another than this vocoder's is refused.
            speaker: one of `speakers`, where there are several; the first if None.

        Returns:
            float32 samples (320 · Σ durations,) in (−1, 1) at 16 kHz; with `speed` 1 exactly that many.

        Raises:
            UserError: no units, ids out of range or of another inventory, bad durations or speed, an unknown speaker, over an hour.
        """
        return self.synthesize_many(
            [units], None if durations is None else [durations], speed, inventory, speaker
        )[0]

    @torch.inference_mode()
    def synthesize_many(
        self,
        utterances: Sequence[Units],
        durations: Sequence[Units] | None = None,
        speed: float = 1.0,
        inventory: str | None = None,
        speaker: str | None = None,
        batch_s: float | None = None,
    ) -> list[np.ndarray]:
        """Speak many utterances, each as `synthesize` would: the same length, and samples that differ by less than 1e-4.

        Those of similar length share a padded batch of `batch_s` seconds of sound, by default what suits the device.
        """
        if inventory is not None:
            check_inventory(inventory, self.inventory, "this vocoder")
        chosen = self._speaker(speaker)
        checked = [self._check_units(units) for units in utterances]
        if durations is not None and len(durations) != len(utterances):
            raise UserError(
                f"{len(utterances)} utterances but durations for {len(durations)}: give one row each, or none at all"
            )
        if durations is None:
            lengths = self._predict(checked)
        else:
            lengths = [
                self._check_durations(d, u) for d, u in zip(durations, utterances, strict=True)
            ]
        pairs = zip(checked, lengths, strict=True)
        rows = [
            _refuse_long(expand(units, scale_durations(length, speed))) for units, length in pairs
        ]
        waves: list[np.ndarray] = [np.empty(0)] * len(rows)
        for batch in plan_batches(
            [len(row) for row in rows],
            BATCH_S.get(self.device[:4], 0.0) if batch_s is None else batch_s,
        ):
            for index, wave in zip(
                batch, self._generate([rows[i] for i in batch], chosen), strict=True
            ):
                waves[index] = wave
        return waves

    def predict_durations(self, units: Units) -> np.ndarray:
        """Merged units (n,) → frames (n,) int64, each at least 1."""
        return self._predict([self._check_units(units)])[0]

    def stream(
        self,
        speed: float = 1.0,
        inventory: str | None = None,
        speaker: str | None = None,
        piece: int = STREAM_PIECE,
    ) -> SpeechStream:
        """A stream: push units as they come, get sound as soon as it is final; all pieces together are what `synthesize` gives.

        piece: frames that are spoken at a time.  Fewer come out sooner, more are faster on the whole.
        """
        if inventory is not None:
            check_inventory(inventory, self.inventory, "this vocoder")
        check_speed(speed)
        if piece < 1:
            raise UserError(f"a piece of {piece} frames was asked for: give at least 1 (20 ms)")
        generator = GeneratorStream(self.generator, self._speaker(speaker))
        return SpeechStream(generator, self.durations, self._check_units, speed, piece)

    def _generate(self, rows: list[np.ndarray], speaker: int | None) -> list[np.ndarray]:
        """Frames of one batch → its waves."""
        if len(rows) == 1 and len(rows[0]) > PIECE:
            stream, frames = GeneratorStream(self.generator, speaker), rows[0]
            starts = range(0, len(frames), PIECE)
            return [
                np.concatenate(
                    [stream(frames[s : s + PIECE], last=s + PIECE >= len(frames)) for s in starts]
                )
            ]
        lengths = [len(row) for row in rows]
        units = np.zeros((len(rows), -(-max(lengths) // GRID) * GRID), dtype=np.int64)
        for index, row in enumerate(rows):
            units[index, : len(row)] = row
        speakers = (
            None if speaker is None else torch.full((len(rows),), speaker, device=self.device)
        )
        frames = torch.tensor(lengths, device=self.device)
        waves = (
            self.generator(torch.from_numpy(units).to(self.device), speakers, frames)
            .float()
            .cpu()
            .numpy()
        )
        return [wave[: length * HOP].copy() for wave, length in zip(waves, lengths, strict=True)]

    @torch.inference_mode()
    def _predict(self, utterances: list[np.ndarray]) -> list[np.ndarray]:
        found = []
        for start in range(0, len(utterances), 64):
            units, mask = pad_units(utterances[start : start + 64])
            durations = (
                self.durations.predict(units.to(self.device), mask.to(self.device)).cpu().numpy()
            )
            found += [
                row[: len(units)]
                for row, units in zip(durations, utterances[start : start + 64], strict=True)
            ]
        return found

    def _check_units(self, units: Units) -> np.ndarray:
        units = np.asarray(units)
        if units.size == 0:
            raise UserError(
                "there are no units to speak: give at least one, as in <sosp><12><7><eosp>"
            )
        if units.ndim != 1 or not np.issubdtype(units.dtype, np.integer):
            raise UserError(
                f"units must be one row of whole numbers, found shape {units.shape} of {units.dtype}"
            )
        if self.drops_negative:
            units = units[units >= 0]
            if units.size == 0:
                raise UserError("all units are negative, so there is nothing to speak")
        check_range(units, self.unit_count)
        return units.astype(np.int64)

    def _check_durations(self, durations: Units, units: Units) -> np.ndarray:
        durations, units = np.asarray(durations), np.asarray(units)
        if (
            durations.ndim != 1
            or not np.issubdtype(durations.dtype, np.integer)
            or (durations < 0).any()
        ):
            raise UserError("durations must be one row of whole numbers of frames, 0 or more")
        if self.drops_negative and durations.shape == units.shape:
            durations = durations[units >= 0]
        if durations.sum() == 0:
            raise UserError(
                "all durations are 0, so there is nothing to speak: give at least one frame"
            )
        return durations

    def _speaker(self, name: str | None) -> int | None:
        if not self.speakers:
            if name is not None:
                raise UserError(
                    f"speaker {name!r} was asked for, but this vocoder has a single voice: leave the speaker out"
                )
            return None
        if name is not None and name not in self.speakers:
            raise UserError(
                f"unknown speaker {name!r}: this vocoder knows {', '.join(self.speakers[:20])}"
            )
        return 0 if name is None else self.speakers.index(name)

    def save(self, folder: Path) -> None:
        """Write into `folder`, beside whatever else lies there; `vocoder.json` last, so that half a vocoder has none."""
        facts = {
            "inventory": self.inventory,
            "unit_count": self.unit_count,
            "sample_rate_hz": SAMPLE_RATE,
            "hop": HOP,
        }
        facts |= {
            "speakers": list(self.speakers),
            "drops_negative": self.drops_negative,
            "duration_width": self.durations.width,
        }
        facts["settings"] = self.settings.model_dump(mode="json")
        folder = Path(folder)
        (folder / "vocoder.json").unlink(missing_ok=True)
        for name, module in (("generator", self.generator), ("durations", self.durations)):
            with atomic_path(folder / f"{name}.safetensors") as temporary:
                save_module(copy.deepcopy(module).cpu().float(), temporary)
        write_json(folder / "vocoder.json", facts)

    @classmethod
    def load(
        cls,
        folder: Path,
        inventory: str | None = None,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> Vocoder:
        """Read what `save` wrote; `inventory` is the id that its units must be of, when given.

        Raises UserError: files missing or damaged, or made for another inventory.
        """
        folder = Path(folder)
        facts = read_json(folder / "vocoder.json")
        try:
            found, count = str(facts["inventory"]), int(facts["unit_count"])
            settings = VocoderSettings.model_validate(facts["settings"])
            speakers = tuple(str(name) for name in facts.get("speakers", ()))
            width, drops = (
                int(facts.get("duration_width", settings.embedding)),
                bool(facts.get("drops_negative", False)),
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            where = folder / "vocoder.json"
            raise UserError(
                f"{where} does not describe a vocoder ({reason}): run its step again"
            ) from None
        if inventory is not None:
            check_inventory(inventory, found, f"the vocoder in {folder}")
        generator = UnitGenerator(count, settings, len(speakers)).fold_weight_norm()
        durations = DurationPredictor(count, settings.embedding, width)
        load_module(generator, folder / "generator.safetensors")
        load_module(durations, folder / "durations.safetensors")
        return cls(generator, durations, found, settings, speakers, drops, device, precision)


def plan_batches(lengths: list[int], batch_s: float) -> list[list[int]]:
    """Utterances of `lengths` frames, the longest first, at most `batch_s` seconds with padding.

    What is too long for a batch is alone in one, and so is what is spoken piece by piece.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    costs = [math.inf if length > PIECE else length for length in lengths]
    return fill_batches(order, costs, batch_s * SAMPLE_RATE / HOP)


def pad_units(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths → (values (batch, n) int64 padded with 0, mask (batch, n) true where a value is)."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.as_tensor(np.asarray(row))
    return values, torch.arange(values.shape[1]) < lengths[:, None]


def _refuse_long(frames: np.ndarray) -> np.ndarray:
    seconds = len(frames) * HOP / SAMPLE_RATE
    if seconds > LONGEST_S:
        raise UserError(
            f"these units make {seconds:.0f} s of speech, the limit is {LONGEST_S:.0f} s: split them"
        )
    return frames
