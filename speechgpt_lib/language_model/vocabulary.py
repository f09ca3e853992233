"""The vocabulary of SpeechGPT: a text tokenizer, expanded by units and markers whose ids follow by arithmetic.

    0, 1, 2                 padding, beginning of a document, end of a document
    3 … T−1                 pieces of the text tokenizer (byte-level BPE)
    T … T+K−1               units <0> … <K−1>
    T+K, T+K+1              <sosp> <eosp>
    then                    [Human] [SpeechGPT] <eoh> <eos> <eoa> [tq] [ta] [ua]

That is the order of the release, to which the lab adds the last four.  Text can never become a marker or a unit: it passes through the
text tokenizer alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import MARKERS, Part, Row
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.units.sequence import EOSP, SOSP, check_range

PAD, BEGIN, END = 0, 1, 2
FIRST_PIECE = 3
_SPLIT = re.compile("(" + "|".join(re.escape(marker) for marker in (SOSP, EOSP, *MARKERS)) + ")")


def train_text_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE over `texts` with at most `size` pieces; every byte is a piece, so nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """Text pieces, and once expanded (`unit_count` > 0) units and markers; `inventory` is the id of the units' inventory."""

    tokenizer: Tokenizer
    unit_count: int = 0
    inventory: str = ""

    def expand(self, unit_count: int, inventory: str) -> Vocabulary:
        """Add `unit_count` units and the markers; expanding again by the same is the same vocabulary."""
        if self.unit_count and (self.unit_count, self.inventory) != (unit_count, inventory):
            raise UserError(f"vocabulary already holds {self.unit_count} units of {self.inventory}; it can't also hold {inventory}")
        return Vocabulary(self.tokenizer, unit_count, inventory)

    @property
    def text_size(self) -> int:
        return FIRST_PIECE + self.tokenizer.get_vocab_size()

    @property
    def size(self) -> int:
        return self.text_size + (self.unit_count + 2 + len(MARKERS) if self.unit_count else 0)

    def marker(self, name: str) -> int:
        """The id of `<sosp>`, `<eosp>` or one of `MARKERS`."""
        return self.text_size + self.unit_count + (SOSP, EOSP, *MARKERS).index(name)

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a row."""
        return frozenset({END, *(self.marker(name) for name in ("<eos>", "<eoa>", EOSP) if self.unit_count)})

    # --- to ids ---------------------------------------------------------------------------------------------------------------
    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; markers written in it stay plain characters."""
        return self._plain(text)

    def encode_units(self, units: np.ndarray) -> list[int]:
        """Units → `<sosp>` … `<eosp>` as ids, by adding the first unit's id."""
        check_range(units, self.unit_count)
        shifted = (np.asarray(units, dtype=np.int64) + self.text_size).tolist()
        return [self.marker(SOSP), *shifted, self.marker(EOSP)]

    def encode_part(self, part: Part) -> list[int]:
        if part.kind == "units":
            return self.encode_units(part.value)
        if part.kind == "text":
            return self._plain(part.value)
        ids: list[int] = []
        for piece in _SPLIT.split(part.value):
            ids += [self.marker(piece)] if _SPLIT.fullmatch(piece) else self._plain(piece)
        return ids

    def encode_row(self, row: Row) -> tuple[list[int], list[int]]:
        """A row → (prompt ids starting with the beginning-of-document id, answer ids)."""
        prompt = [i for part in row.prompt for i in self.encode_part(part)]
        return [BEGIN, *prompt], [i for part in row.answer for i in self.encode_part(part)]

    def _plain(self, text: str) -> list[int]:
        # A blank between two parts is not encoded: the next word's piece carries its own.
        return [FIRST_PIECE + piece for piece in self.tokenizer.encode(text.strip()).ids]

    # --- from ids -------------------------------------------------------------------------------------------------------------
    def is_unit(self, token: int) -> bool:
        return 0 <= token - self.text_size < self.unit_count

    def is_text(self, token: int) -> bool:
        return FIRST_PIECE <= token < self.text_size

    def units_in(self, ids: Iterable[int]) -> np.ndarray:
        """The unit ids (n,) among token ids, everything else left out."""
        return np.array([i - self.text_size for i in ids if self.is_unit(i)], dtype=np.int64)

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text pieces among token ids as text."""
        return self.tokenizer.decode([i - FIRST_PIECE for i in ids if self.is_text(i)]).strip()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        if token < FIRST_PIECE:
            return ("<pad>", "<begin>", "<end>")[token]
        if token < self.text_size:
            return self.tokenizer.decode([token - FIRST_PIECE])
        if self.is_unit(token):
            return f"<{token - self.text_size}>"
        return (SOSP, EOSP, *MARKERS)[token - self.text_size - self.unit_count]

    # --- on disk --------------------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "vocabulary.json", {"unit_count": self.unit_count, "inventory": self.inventory, "size": self.size})

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        facts = read_json(folder / "vocabulary.json")
        found = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), facts["unit_count"], facts["inventory"])
        if found.size != facts["size"]:
            raise UserError(f"{folder}: the tokenizer makes {found.size} tokens, vocabulary.json says {facts['size']}: files of two runs?")
        return found
