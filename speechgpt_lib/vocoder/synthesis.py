"""Merged units → speech: generator and duration predictor together, as one object on disk and in memory.

    vocoder/{vocoder.json, generator.safetensors, durations.safetensors}

It knows the inventory whose units it was trained on and refuses those of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.runs.artefacts import atomic_path, read_json, write_json
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.inventory import check_inventory
from speechgpt_lib.units.sequence import check_range, expand
from speechgpt_lib.vocoder.durations import DurationPredictor, scale_durations
from speechgpt_lib.vocoder.generator import HOP, SAMPLE_RATE, UnitGenerator

LONGEST_S = 120.0  # of one utterance: the generator holds all of it in memory


@dataclass(frozen=True)
class Vocoder:
    """Turns units of the inventory `inventory` (its id) into speech.

    Both trained parts are made ready for inference in place: weight norm folded, dropout off, on the CPU.
    """

    generator: UnitGenerator
    durations: DurationPredictor
    inventory: str
    settings: VocoderSettings

    def __post_init__(self) -> None:
        generator, durations = self.generator.unit_count, self.durations.dict.num_embeddings
        if generator != durations:
            raise UserError(f"the generator knows {generator} units but the duration predictor {durations}: they belong apart")
        self.generator.fold_weight_norm().cpu().eval().requires_grad_(False)
        self.durations.cpu().eval().requires_grad_(False)

    @property
    def unit_count(self) -> int:
        return self.generator.unit_count

    @torch.inference_mode()
    def synthesize(
        self,
        units: np.ndarray | list[int],
        durations: np.ndarray | list[int] | None = None,
        speed: float = 1.0,
        inventory: str | None = None,
    ) -> np.ndarray:
        """Speak merged units (n,).

        Args:
            durations: frames (n,) of 20 ms each; predicted when None.
            speed: 2 speaks in half the time.
            inventory: id of the inventory the units are of, if it is known; another than this vocoder's is refused.

        Returns:
            float32 samples (320 · Σ durations,) in (−1, 1) at 16 kHz; with `speed` 1 exactly that many.

        Raises:
            UserError: no units, ids out of range or of another inventory, bad durations or speed, over 2 minutes.
        """
        if inventory is not None:
            check_inventory(inventory, self.inventory, "this vocoder")
        units = np.asarray(units)
        if units.size == 0:
            raise UserError("there are no units to speak: give at least one, as in <sosp><12><7><eosp>")
        if units.ndim != 1 or not np.issubdtype(units.dtype, np.integer):
            raise UserError(f"units must be one row of whole numbers, found shape {units.shape} of {units.dtype}")
        check_range(units, self.unit_count)
        lengths = self.predict_durations(units) if durations is None else durations
        frames = expand(units, scale_durations(_check_durations(lengths), speed))
        if len(frames) * HOP > LONGEST_S * SAMPLE_RATE:
            seconds = len(frames) * HOP / SAMPLE_RATE
            raise UserError(f"these units make {seconds:.0f} s of speech, the limit is {LONGEST_S:.0f} s: split them")
        return self.generator(torch.from_numpy(frames)[None])[0].numpy()

    def predict_durations(self, units: np.ndarray | list[int]) -> np.ndarray:
        """Merged units (n,) → frames (n,) int64, each at least 1."""
        units = np.asarray(units, dtype=np.int64)
        check_range(units, self.unit_count)
        return self.durations.predict(torch.from_numpy(units)[None])[0].numpy()

    def save(self, folder: Path) -> None:
        """Write into `folder`, beside whatever else lies there; `vocoder.json` last, so that half a vocoder has none."""
        facts = {"inventory": self.inventory, "unit_count": self.unit_count, "sample_rate_hz": SAMPLE_RATE, "hop": HOP}
        facts["settings"] = self.settings.model_dump(mode="json")
        folder = Path(folder)
        (folder / "vocoder.json").unlink(missing_ok=True)
        for name, module in (("generator", self.generator), ("durations", self.durations)):
            with atomic_path(folder / f"{name}.safetensors") as temporary:
                save_module(module, temporary)
        write_json(folder / "vocoder.json", facts)

    @classmethod
    def load(cls, folder: Path, inventory: str | None = None) -> Vocoder:
        """Read what `save` wrote; `inventory` is the id that its units must be of, when given.

        Raises UserError: files missing or damaged, or made for another inventory.
        """
        folder = Path(folder)
        facts = read_json(folder / "vocoder.json")
        try:
            found, count = str(facts["inventory"]), int(facts["unit_count"])
            settings = VocoderSettings.model_validate(facts["settings"])
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            where = folder / "vocoder.json"
            raise UserError(f"{where} does not describe a vocoder ({reason}): run its step again") from None
        if inventory is not None:
            check_inventory(inventory, found, f"the vocoder in {folder}")
        generator = UnitGenerator(count, settings).fold_weight_norm()
        durations = DurationPredictor(count, settings.embedding)
        load_module(generator, folder / "generator.safetensors")
        load_module(durations, folder / "durations.safetensors")
        return cls(generator, durations, found, settings)


def _check_durations(durations: np.ndarray | list[int]) -> np.ndarray:
    durations = np.asarray(durations)
    if durations.ndim != 1 or not np.issubdtype(durations.dtype, np.integer) or (durations < 0).any():
        raise UserError("durations must be one row of whole numbers of frames, 0 or more")
    if durations.sum() == 0:
        raise UserError("all durations are 0, so there is nothing to speak: give at least one frame")
    return durations
