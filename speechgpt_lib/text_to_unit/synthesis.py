"""A trained text-to-unit model: texts in, merged units out, in batches; and its folder on disk.

    text_to_unit/{text_to_unit.json, tokenizer.json, model.safetensors}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PegasusForConditionalGeneration

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.text_to_unit.model import BEGIN, END, PAD, PairVocabulary, build_model
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.inventory import check_inventory


@dataclass(frozen=True)
class TextToUnit:
    """Turns text into units of the inventory `inventory` (its id); `rate` is the mean number of units a text piece stands for."""

    model: PegasusForConditionalGeneration
    vocabulary: PairVocabulary
    inventory: str
    rate: float
    settings: TextToUnitSettings

    @torch.inference_mode()
    def generate(self, texts: Sequence[str], beams: int = 1, batch_size: int = 32) -> list[np.ndarray]:
        """Texts → merged units (n,) each.  What a text gives does not depend on the others in its batch.

        No answer is longer than twice what its text usually takes.  Raises UserError for an empty text or unknown characters.
        """
        encoded = [self.vocabulary.encode_text(text) for text in texts]
        results: list[np.ndarray] = [np.array([], dtype=np.int64)] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            longest = max(len(encoded[k]) for k in chosen)
            sources = torch.tensor([encoded[k] + [PAD] * (longest - len(encoded[k])) for k in chosen])
            output = self.model.generate(
                input_ids=sources,
                attention_mask=(sources != PAD).long(),
                max_new_tokens=self._limit(longest),
                num_beams=beams,
                do_sample=False,
                decoder_start_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )
            for k, ids in zip(chosen, output.tolist(), strict=True):
                results[k] = _merged(self.vocabulary.units_in(ids[: self._limit(len(encoded[k])) + 1]))
        return results

    def _limit(self, pieces: int) -> int:
        return int(2 * self.rate * pieces) + 16

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
        save_module(self.model, folder / "model.safetensors")
        facts = {"inventory": self.inventory, "unit_count": self.vocabulary.unit_count, "rate": self.rate}
        write_json(folder / "text_to_unit.json", facts | {"settings": self.settings.model_dump(mode="json")})

    @classmethod
    def load(cls, folder: Path, inventory: str | None = None) -> TextToUnit:
        """Load what `save` wrote; with `inventory`, refuse a model of another one."""
        if not (folder / "text_to_unit.json").is_file():
            raise UserError(f"no text-to-unit model in {folder}: run notebook 04_chain_of_modality_instructions.ipynb first")
        facts = read_json(folder / "text_to_unit.json")
        if inventory is not None:
            check_inventory(inventory, facts["inventory"], f"the text-to-unit model {folder}")
        settings = TextToUnitSettings.model_validate(facts["settings"])
        vocabulary = PairVocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")), facts["unit_count"])
        model = build_model(settings, vocabulary, facts["rate"], seed=0)
        load_module(model, folder / "model.safetensors")
        return cls(model.eval(), vocabulary, facts["inventory"], facts["rate"], settings)


def _merged(units: np.ndarray) -> np.ndarray:
    """Drop adjacent repeats, which merged units can't have."""
    return units[np.concatenate(([True], units[1:] != units[:-1]))] if len(units) else units
