"""A text-to-unit model, trained here or published: texts in, merged units out, in batches; and its folder on disk.

text_to_unit/{text_to_unit.json, tokenizer.json or spm.model, model.safetensors}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.text_to_unit import published
from speechgpt_lib.text_to_unit.beam_search import beam_search
from speechgpt_lib.text_to_unit.model import POSITIONS, PairVocabulary, build_model, pad_rows
from speechgpt_lib.text_to_unit.spoken_form import spoken_form
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.inventory import check_inventory
from speechgpt_lib.units.sequence import merge

PUBLISHED = {
    "longest": 1000,
    "merges": False,
    "beams": 5,
    "name": "published text-to-unit model",
}  # as the release calls it


@dataclass(frozen=True)
class TextToUnit:
    """Turns text into units of the inventory `inventory` (its id).

    `rate` is the mean number of units a text piece stands for, where it is known; an answer has at most `longest` units.  A model can
    write a unit twice in a row, which merged units can't have: with `merges` such runs become one; the published one's stay.
    With `spoken_form` texts are read as the transcripts were from which the model has learned.
    `settings` is what the model is built from: its section of the recipe, or the geometry of a published one.
    """

    model: PreTrainedModel
    vocabulary: PairVocabulary | published.SentencePieceVocabulary
    inventory: str
    settings: TextToUnitSettings | dict[str, Any]
    rate: float | None = None
    longest: int = POSITIONS - 1
    merges: bool = True
    beams: int = 1
    name: str = "text-to-unit model"
    spoken_form: bool = False

    @torch.inference_mode()
    def generate(
        self, texts: Sequence[str], beams: int | None = None, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Texts → merged units (n,) each.  What a text gives does not depend on the others in its batch.

        An answer has at least one unit and, where the rate is known, at most twice what its text usually takes (a little more for a
        short one).

        Args:
            beams: 1 takes the likeliest unit at each step, more search for the likeliest sequence; None takes the model's own number.

        Raises:
            UserError: a text that is empty, too long or has unknown characters.
        """
        if isinstance(texts, str):
            raise UserError(
                "generate takes a list of texts, found a single one: put it in brackets"
            )
        beams = self.beams if beams is None else beams
        if beams < 1 or batch_size < 1:
            raise UserError(
                f"beams and batch_size must be 1 or more, found {beams} and {batch_size}"
            )
        self.model.eval()
        pad = self.vocabulary.pad
        encoded = [self._encode(text) for text in texts]
        results: list[np.ndarray] = [np.array([], dtype=np.int64)] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            sources = pad_rows([encoded[k] for k in chosen], pad).to(self.model.device)
            limits = [self._limit(len(encoded[k])) for k in chosen]
            output = beam_search(self.model, self.vocabulary, sources, limits, beams)
            for k, ids in zip(chosen, output, strict=True):
                units = self.vocabulary.units_in(ids)
                results[k] = merge(units)[0] if self.merges else units
        return results

    def refuses(self, text: str) -> str | None:
        """Why `text` can't be voiced, or None."""
        try:
            self._encode(text)
        except UserError as error:
            return str(error)
        return None

    def _encode(self, text: str) -> list[int]:
        ids = self.vocabulary.encode_text(spoken_form(text) if self.spoken_form else text)
        if len(ids) > POSITIONS or self._limit(len(ids)) > self.longest:
            raise UserError(
                f"text of {len(text)} characters ({text[:30]!r}…) is too long: its units may need more than the {POSITIONS} positions of "
                "this text-to-unit model; split it into sentences"
            )
        return ids

    def _limit(self, pieces: int) -> int:
        return self.longest if self.rate is None else int(2 * self.rate * pieces) + 16

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(folder)
        save_module(self.model, folder / "model.safetensors")
        settings = (
            self.settings
            if isinstance(self.settings, dict)
            else self.settings.model_dump(mode="json")
        )
        kind = "published" if isinstance(self.settings, dict) else "trained"
        facts = {
            "kind": kind,
            "inventory": self.inventory,
            "unit_count": self.vocabulary.unit_count,
            "rate": self.rate,
            "spoken_form": self.spoken_form,
        }
        write_json(folder / "text_to_unit.json", facts | {"settings": settings})

    @classmethod
    def load(cls, folder: Path, inventory: str | None = None) -> TextToUnit:
        """Load what `save` wrote; with `inventory`, refuse a model of another one."""
        if not (folder / "text_to_unit.json").is_file():
            raise UserError(
                f"no text-to-unit model in {folder}: run notebook 04_chain_of_modality_instructions.ipynb, or speechgpt text-to-unit train "
                "or import"
            )
        facts = read_json(folder / "text_to_unit.json")
        if inventory is not None:
            check_inventory(inventory, facts["inventory"], f"the text-to-unit model {folder}")
        try:
            if facts["kind"] == "published":
                vocabulary = published.load_vocabulary(folder / published.MODEL_FILE)
                model, settings = published.build_fsmt(facts["settings"]), facts["settings"]
            else:
                vocabulary = PairVocabulary(
                    Tokenizer.from_file(str(folder / "tokenizer.json")), facts["unit_count"]
                )
                settings = TextToUnitSettings.model_validate(facts["settings"])
                model = build_model(settings, vocabulary, facts["rate"], seed=0)
        except (KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder} does not describe a text-to-unit model ({reason}): run its step again"
            ) from None
        load_module(model, folder / "model.safetensors")
        made = cls(model.eval(), vocabulary, facts["inventory"], settings, facts["rate"])
        own = (
            PUBLISHED
            if facts["kind"] == "published"
            else {"beams": settings.beams, "spoken_form": facts.get("spoken_form", False)}
        )
        return replace(made, **own)


def from_fairseq(
    checkpoint: Path | str, spm: Path | str, inventory: str, dictionary: Path | str | None = None
) -> TextToUnit:
    """The published text-to-unit model, ready to speak.

    Args:
        checkpoint: `text2unit.pt`.
        spm: the `spm.model` beside it.
        inventory: id of the inventory whose units it writes; the files don't say it.
        dictionary: `dict.unit.txt`, to be compared with `spm`.
    """
    checkpoint, spm = Path(checkpoint).expanduser(), Path(spm).expanduser()
    vocabulary = published.load_vocabulary(
        spm, Path(dictionary).expanduser() if dictionary else None
    )
    model, settings = published.model_from_fairseq(checkpoint, vocabulary.size)
    return TextToUnit(model, vocabulary, inventory, settings, **PUBLISHED)
