"""Merged units → speech, one utterance, many in padded batches, or a stream: the sound is the same.

    vocoder/{vocoder.json, generator.safetensors, durations.safetensors}

A vocoder knows the inventory whose units it was trained on and refuses those of another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.tensors import check_described, check_sizes
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.runs.artefacts import atomic_path, read_json, write_json
from speechgpt_lib.training.batches import fill_batches
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.features import PRECISIONS, check_choice
from speechgpt_lib.units.inventory import check_inventory
from speechgpt_lib.units.sequence import check_range, expand
from speechgpt_lib.vocoder.durations import DurationPredictor, scale_durations, scaled_borders
from speechgpt_lib.vocoder.generator import Rows, UnitGenerator
from speechgpt_lib.vocoder.streaming import GeneratorStream, SpeechStream

LONGEST_S = 3600.0  # of one utterance: more is a mistake
GRID = 32  # frames; batches are padded to a multiple: a length that is new to a CPU costs it 0.1 s
PIECE = 500  # frames; longer speech is spoken piece by piece, so memory doesn't grow with it
STREAM_PIECE = 10  # frames (0.2 s) at a time in a stream
GPU_BATCH_S = 30.0  # in a padded batch; on a CPU one utterance at a time is fastest

Units = np.ndarray | list[int]


@dataclass(frozen=True)
class Vocoder:
    """Turns units of the inventory `inventory` (its id) into speech.

    speakers: their names, if it knows several.  drops_negative: whether negative units are left
    out, as fairseq does, instead of refused.  precision: fp32 or bf16 (benchmarks/vocoder.py says
    how far off).  Both parts are made ready for inference in place, on `device`.
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
        units, timed = self.unit_count, self.durations.dict.num_embeddings
        if units != timed:
            raise UserError(f"the generator knows {units} units but the duration predictor {timed}")
        known = self.generator.spkr.num_embeddings if self.generator.spkr else 0
        if known != (names := len(self.speakers)):
            raise UserError(f"the generator knows {known} speakers but {names} have names")
        check_choice("precision", self.precision, PRECISIONS)
        generator = self.generator.fold_weight_norm().eval().requires_grad_(False)
        generator.to(self.device, PRECISIONS[self.precision])
        # In double precision, so that no rounding to frames depends on what comes with a unit.
        self.durations.to(self.device, torch.float64).eval().requires_grad_(False)

    @property
    def unit_count(self) -> int:
        """K: units are 0 … K − 1."""
        return self.generator.dict.num_embeddings

    def synthesize(
        self, units: Units, durations: Units | None = None, speed: float = 1.0, **options
    ) -> np.ndarray:
        """Speak merged units (n,): float32 samples (hop · Σ durations,) in [−1, 1] at 16 kHz.

        durations: frames (n,) of `hop` samples, predicted if None; options: see `synthesize_many`.
        """
        given = None if durations is None else [durations]
        return self.synthesize_many([units], given, speed, **options)[0]

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
        """Speak many utterances, each as if alone: samples differ by less than 1e-4 (on a GPU,
        whose convolutions round their input to 10 bits, 1e-3).

        speed: 2 speaks in half the time.  inventory: id of the one the units are of, if known.
        speaker: one of `speakers`, the first if None.  batch_s: seconds in a padded batch.
        Raises UserError: no units, ids out of range or of another inventory, bad durations or
        speed, an unknown speaker, over an hour.
        """
        voice = self._voice(inventory, speaker)
        checked = [self._check_units(units) for units in utterances]
        if durations is None:
            lengths = [self.predict_durations(units) for units in checked]
        elif len(durations) == len(utterances):
            lengths = list(map(self._check_durations, durations, utterances))
        else:
            found = f"{len(utterances)} utterances but durations for {len(durations)}"
            raise UserError(f"{found}: give one row each, or none at all")
        scaled = [scale_durations(frames, speed) for frames in lengths]
        rows = list(map(expand, checked, scaled))
        hop = self.generator.hop
        if (seconds := max(map(len, rows), default=0) * hop / SAMPLE_RATE) > LONGEST_S:
            raise UserError(f"{seconds:.0f} s of units, the limit is {LONGEST_S:.0f} s: split them")
        if batch_s is None:
            batch_s = GPU_BATCH_S if self.device.startswith("cuda") else 0.0
        waves: dict[int, np.ndarray] = {}
        for batch in plan_batches([len(row) for row in rows], batch_s, hop):
            made = self._generate([rows[i] for i in batch], voice)
            waves.update(zip(batch, made, strict=True))
        return [waves[i] for i in range(len(rows))]

    def predict_durations(self, units: Units) -> np.ndarray:
        """Merged units (n,) → frames (n,) int64, each at least 1."""
        row = torch.from_numpy(self._check_units(units)).to(self.device)
        return self.durations.predict(row[None])[0].cpu().numpy()

    def stream(
        self,
        speed: float = 1.0,
        inventory: str | None = None,
        speaker: str | None = None,
        piece: int = STREAM_PIECE,
    ) -> SpeechStream:
        """Speak while units come: push them, get sound as soon as it is final, as `synthesize`'s.

        piece: frames that are spoken at a time.  Fewer come out sooner, more are faster in all.
        """
        voice = self._voice(inventory, speaker)
        scaled_borders(0, speed)  # refuses a speed that can't be
        if piece < 1:
            raise UserError(f"a piece of {piece} frames was asked for: give at least 1")
        generator = GeneratorStream(self.generator, voice)
        return SpeechStream(generator, self.durations, self._check_units, speed, piece)

    def _generate(self, rows: list[np.ndarray], voice: int | None) -> list[np.ndarray]:
        if len(rows) == 1 and len(rows[0]) > PIECE:
            stream, frames = GeneratorStream(self.generator, voice), rows[0]
            starts = range(0, len(frames), PIECE)
            pieces = [stream(frames[s : s + PIECE], s + PIECE >= len(frames)) for s in starts]
            return [np.concatenate(pieces)]
        units, mask = pad_units(rows)
        units = pad(units, (0, -units.shape[1] % GRID)).to(self.device)  # (batch, frames)
        frames = mask.sum(1).to(self.device)
        speakers = None if voice is None else torch.full_like(frames, voice)
        waves = self.generator(units, speakers, Rows(frames, units.shape[1])).float().cpu().numpy()
        ends = [len(row) * self.generator.hop for row in rows]
        return [wave[:end].copy() for wave, end in zip(waves, ends, strict=True)]

    def _check_units(self, units: Units) -> np.ndarray:
        found = _whole_numbers(units, "units")
        kept = found[found >= 0] if self.drops_negative else found
        if not kept.size:
            why = "all units are negative" if found.size else "there are no units to speak"
            raise UserError(f"{why}: give at least one, such as <12>")
        check_range(kept, self.unit_count)
        return kept.astype(np.int64)

    def _check_durations(self, durations: Units, units: Units) -> np.ndarray:
        durations, units = _whole_numbers(durations, "durations"), np.asarray(units)
        if (durations < 0).any():
            raise UserError("a duration is negative: durations are frames, 0 or more")
        if self.drops_negative and durations.shape == units.shape:
            durations = durations[units >= 0]
        if durations.sum() == 0:
            raise UserError("all durations are 0, so there is nothing to speak")
        return durations

    def _voice(self, inventory: str | None, speaker: str | None) -> int | None:
        """Refuse units of another inventory; the number of the speaker, None for a single voice."""
        if inventory is not None:
            check_inventory(inventory, self.inventory, "this vocoder")
        if speaker is None:
            return 0 if self.speakers else None
        if speaker not in self.speakers:
            known = ", ".join(self.speakers[:20]) or "a single voice: leave the speaker out"
            raise UserError(f"unknown speaker {speaker!r}: this vocoder knows {known}")
        return self.speakers.index(speaker)

    def save(self, folder: Path) -> None:
        """Write into `folder`, beside what else lies there, `vocoder.json` last."""
        facts = {"inventory": self.inventory, "unit_count": self.unit_count}
        facts |= {"sample_rate_hz": SAMPLE_RATE, "hop": self.generator.hop}
        facts |= {"speakers": list(self.speakers)}
        width, settings = self.durations.proj.in_features, self.settings.model_dump(mode="json")
        facts |= {"drops_negative": self.drops_negative, "duration_width": width}
        facts |= {"settings": settings}
        folder = Path(folder)
        (folder / "vocoder.json").unlink(missing_ok=True)
        for name, module in (("generator", self.generator), ("durations", self.durations)):
            with atomic_path(folder / f"{name}.safetensors") as temporary:
                save_module(copy.deepcopy(module).cpu().float(), temporary)
        write_json(folder / "vocoder.json", facts)

    @classmethod
    def load(cls, folder: Path, inventory: str | None = None, **options: str) -> Vocoder:
        """Read what `save` wrote; options: `device`, `precision`.

        Raises UserError: files missing or damaged, or made for another inventory than `inventory`.
        """
        path = Path(folder) / "vocoder.json"
        facts = read_json(path)
        with reading(path, "run its step again", "does not describe a vocoder"):
            check_sizes(facts, path)
            settings = VocoderSettings.model_validate(facts["settings"])
            found, drops = str(facts["inventory"]), bool(facts["drops_negative"])
            speakers, count = tuple(facts["speakers"]), facts["unit_count"]
            files = [path.with_name(f"{name}.safetensors") for name in ("generator", "durations")]
            speak = partial(UnitGenerator, count, settings, len(speakers))
            sizes = count, settings.embedding, facts["duration_width"], settings.durations
            last = partial(DurationPredictor, *sizes)
            check_described(speak, *files)
            check_described(last, *files)
            generator, durations = speak().fold_weight_norm(), last()
        if inventory is not None:
            check_inventory(inventory, found, f"the vocoder in {folder}")
        load_module(generator, files[0])
        load_module(durations, files[1])
        return cls(generator, durations, found, settings, speakers, drops, **options)


def plan_batches(lengths: list[int], batch_s: float, hop: int = HOP) -> list[list[int]]:
    """Utterances of `lengths` frames, the longest first, `batch_s` seconds at most or one alone."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    costs = [math.inf if length > PIECE else length for length in lengths]  # those are alone
    return fill_batches(order, costs, batch_s * SAMPLE_RATE / hop)


def pad_units(rows: Sequence[Units]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows → values (batch, n) int64 padded with 0, and a mask (batch, n), true where one is."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    values, lengths = pad_sequence(tensors, batch_first=True), torch.tensor(list(map(len, rows)))
    return values, torch.arange(values.shape[1]) < lengths[:, None]


def _whole_numbers(values: Units, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.size and not np.issubdtype(values.dtype, np.integer):
        found = f"{values.dtype} {values.shape}"
        raise UserError(f"{what} must be one row of whole numbers, found {found}")
    return values
