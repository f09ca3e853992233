"""A text-to-unit model, trained here or published: texts in, merged units out; and its folder.

text_to_unit/{text_to_unit.json, tokenizer.json or spm.model, model.safetensors}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.tensors import check_described, check_sizes
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.text_to_unit import published
from speechgpt_lib.text_to_unit.beam_search import beam_search
from speechgpt_lib.text_to_unit.model import POSITIONS, PairVocabulary, build_model, pad_rows
from speechgpt_lib.text_to_unit.spoken_form import spoken_form, unsaid
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.inventory import check_inventory
from speechgpt_lib.units.sequence import merge

PUBLISHED = {"longest": 1000, "merges": False, "beams": 5, "name": "published text-to-unit model"}


@dataclass(frozen=True)
class TextToUnit:
    """Turns text into units of the inventory `inventory` (its id).

    settings: what the model is built from: its section of the recipe, or a published geometry.
    rate: mean number of units of a text piece, where known.  longest: units an answer may have.
    merges: whether a unit written twice in a row becomes one.  spoken_form: whether texts become
    what transcripts look like.
    """

    model: transformers.PreTrainedModel
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
        """Texts → merged units (n,) each; the other texts in the batch don't matter.

        An answer has at least one unit and, where the rate is known, at most about twice what its
        text usually takes.  beams: how many sequences are followed; None: the model's own number.
        Raises UserError for a text that is empty, too long or has unknown characters.
        """
        if isinstance(texts, str):
            raise UserError("generate takes a list of texts, found one: put it in brackets")
        beams = self.beams if beams is None else beams
        if beams < 1 or batch_size < 1:
            raise UserError(f"beams, batch_size: {beams}, {batch_size}: both must be 1 or more")
        self.model.eval()
        encoded = [self._encode(text) for text in texts]
        order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            sources = pad_rows([encoded[k] for k in chosen], self.vocabulary.pad)
            limits = [self._limit(len(encoded[k])) for k in chosen]
            sources = sources.to(self.model.device)
            output = beam_search(self.model, self.vocabulary, sources, limits, beams)
            found |= dict(zip(chosen, output, strict=True))
        units = [self.vocabulary.units_in(found[k]) for k in range(len(encoded))]
        return [merge(row)[0] for row in units] if self.merges else units

    def refuses(self, text: str) -> str | None:
        """Why `text` can't be voiced, or None."""
        try:
            self._encode(text)
        except UserError as error:
            return str(error)
        return None

    def _encode(self, text: str) -> list[int]:
        if self.spoken_form and (lost := "".join(unsaid(text))):
            cure = "write it in English letters"
            raise UserError(f"no English words for {lost[:30]!r} in {text[:30]!r}: {cure}")
        ids = self.vocabulary.encode_text(spoken_form(text) if self.spoken_form else text)
        if len(ids) > POSITIONS or self._limit(len(ids)) > self.longest:
            what = f"text of {len(text)} characters ({text[:30]!r}…) is too long for this model"
            raise UserError(f"{what} of {POSITIONS} positions: split it into sentences")
        return ids

    def _limit(self, pieces: int) -> int:
        return self.longest if self.rate is None else int(2 * self.rate * pieces) + 16

    def save(self, folder: Path) -> None:
        """Write the model, its vocabulary and, last, `text_to_unit.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.settings, TextToUnitSettings):
            kind, settings = "trained", self.settings.model_dump(mode="json")
            self.vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
        else:
            kind, settings = "published", self.settings
            (folder / "spm.model").write_bytes(self.vocabulary.serialized)
        save_module(self.model, folder / "model.safetensors")
        facts = {"kind": kind, "inventory": self.inventory}
        facts |= {"unit_count": self.vocabulary.unit_count, "rate": self.rate}
        facts |= {"spoken_form": self.spoken_form, "settings": settings}
        write_json(folder / "text_to_unit.json", facts)

    @classmethod
    def load(cls, folder: Path, inventory: str | None = None) -> TextToUnit:
        """Load what `save` wrote; with `inventory`, refuse a model of another one."""
        path = folder / "text_to_unit.json"
        if not path.is_file():
            raise UserError(f"no text-to-unit model in {folder}: run notebook 04, or import one")
        facts = read_json(path)
        if inventory is not None:
            check_inventory(inventory, facts["inventory"], f"the text-to-unit model {folder}")
        with reading(folder, "run its step again", "does not describe a text-to-unit model"):
            check_sizes(facts, path)
            rate, settings, options = facts["rate"], facts["settings"], PUBLISHED
            if facts["kind"] == "published":
                vocabulary = published.load_vocabulary(folder / "spm.model")
                make = partial(published.build_fsmt, settings)
            else:
                settings = TextToUnitSettings.model_validate(settings)
                options = {"beams": settings.beams, "spoken_form": facts["spoken_form"]}
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
                vocabulary = PairVocabulary(tokenizer, facts["unit_count"])
                make = partial(build_model, settings, vocabulary, rate, seed=0)
            check_described(make, folder / "model.safetensors")
            load_module(model := make(), folder / "model.safetensors")
        return cls(model.eval(), vocabulary, facts["inventory"], settings, rate, **options)


def from_fairseq(
    checkpoint: Path | str, spm: Path | str, inventory: str, dictionary: Path | str | None = None
) -> TextToUnit:
    """The published model (`text2unit.pt`, `spm.model`, to be compared: `dict.unit.txt`).

    inventory: id of that of its units.  Raises UserError for files that can't be it.
    """
    listed = Path(dictionary).expanduser() if dictionary else None
    vocabulary = published.load_vocabulary(Path(spm).expanduser(), listed)
    model, settings = published.model_from_fairseq(Path(checkpoint).expanduser(), vocabulary)
    return TextToUnit(model, vocabulary, inventory, settings, **PUBLISHED)
