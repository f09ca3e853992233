"""A trained text-to-unit model: texts in, merged units out, in batches; and its folder on disk.

text_to_unit/{text_to_unit.json, tokenizer.json, model.safetensors}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import LogitsProcessor, PegasusForConditionalGeneration

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.text_to_unit.model import BEGIN, END, PAD, POSITIONS, PairVocabulary, build_model, pad_rows
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.inventory import check_inventory
from speechgpt_lib.units.sequence import merge


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

        An answer has at least one unit and at most twice what its text usually takes (a little more for short ones).

        Args:
            beams: 1 takes the likeliest unit at each step, more search for the likeliest sequence.

        Raises:
            UserError: a text that is empty, too long or has unknown characters.
        """
        if isinstance(texts, str):
            raise UserError("generate takes a list of texts, found a single one: put it in brackets")
        if beams < 1 or batch_size < 1:
            raise UserError(f"beams and batch_size must be 1 or more, found {beams} and {batch_size}")
        self.model.eval()
        encoded = [self._encode(text) for text in texts]
        results: list[np.ndarray] = [np.array([], dtype=np.int64)] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            sources = pad_rows([encoded[k] for k in chosen], PAD).to(self.model.device)
            limits = torch.tensor([self._limit(len(encoded[k])) for k in chosen], device=self.model.device)
            output = self.model.generate(
                input_ids=sources,
                attention_mask=(sources != PAD).long(),
                max_new_tokens=int(limits.max()) + 1,
                logits_processor=[UnitsUpTo(limits.repeat_interleave(beams), self.vocabulary)],
                num_beams=beams,
                early_stopping=beams > 1,
                do_sample=False,
                decoder_start_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )
            for k, ids in zip(chosen, output.tolist(), strict=True):
                results[k] = merge(self.vocabulary.units_in(ids))[0]  # the model can write a unit twice, merged units can't have it
        return results

    def _encode(self, text: str) -> list[int]:
        ids = self.vocabulary.encode_text(text)
        if max(len(ids), self._limit(len(ids)) + 1) > POSITIONS:
            raise UserError(
                f"text of {len(text)} characters ({text[:30]!r}…) is too long: its units may need more than the {POSITIONS} positions of "
                "this text-to-unit model; split it into sentences"
            )
        return ids

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
        try:
            settings = TextToUnitSettings.model_validate(facts["settings"])
        except (KeyError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} does not describe a text-to-unit model ({reason}): run its step again") from None
        vocabulary = PairVocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")), facts["unit_count"])
        model = build_model(settings, vocabulary, facts["rate"], seed=0)
        load_module(model, folder / "model.safetensors")
        return cls(model.eval(), vocabulary, facts["inventory"], facts["rate"], settings)


class UnitsUpTo(LogitsProcessor):
    """Lets only units be written, at least one and at most `limits` (rows × beams,) of them.

    Each row has a limit of its own, so that it does not depend on the other texts in the batch.
    """

    def __init__(self, limits: torch.Tensor, vocabulary: PairVocabulary):
        self.limits, self.vocabulary = limits, vocabulary

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = input_ids.shape[1] - 1  # the start id is no unit
        units = slice(self.vocabulary.first_unit, self.vocabulary.first_unit + self.vocabulary.unit_count)
        allowed = torch.full_like(scores, -math.inf)
        allowed[:, units] = scores[:, units]
        if written:
            allowed[:, END] = scores[:, END]
        full = self.limits <= written
        allowed[full] = -math.inf
        allowed[full, END] = 0.0
        return allowed
