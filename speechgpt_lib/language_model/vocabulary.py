"""The vocabulary of SpeechGPT: a text tokenizer, expanded by units and markers whose ids follow by arithmetic.

    0, 1, 2                 padding, beginning of a document, end of a document
    3 … T−1                 pieces of the text tokenizer (byte-level BPE)
    T … T+K−1               units <0> … <K−1>
    T+K, T+K+1              <sosp> <eosp>
    then                    [Human] [SpeechGPT] <eoh> <eos> <eoa> [tq] [ta] [ua]

That is the order of the release, to which the lab adds the last four.  Text can never become a marker or a unit: it passes through the
text tokenizer alone.  A published model with a fast BPE tokenizer brings ids of its own for everything below T (`TextIds`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import MARKERS, Part, Row
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.units.sequence import EOSP, SOSP, check_range

PAD, BEGIN, END = 0, 1, 2
FIRST_PIECE = 3
UNEXPANDED = "this vocabulary has no units and markers yet: expand it and its model first (notebook 05_vocabulary_expansion.ipynb)"
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
class TextIds:
    """How a text tokenizer's pieces become ids: moved up by `first_piece`, `size` ids in all (None: as many as there are pieces).

    lead: what is written before a text, a blank for tokenizers that expect one before a word and don't add it themselves.
    """

    first_piece: int = FIRST_PIECE
    begin: int = BEGIN
    end: int = END
    size: int | None = None
    lead: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """Text pieces, and once expanded (`unit_count` > 0) units and markers; `inventory` is the id of the units' inventory."""

    tokenizer: Tokenizer
    unit_count: int = 0
    inventory: str = ""
    text: TextIds = TextIds()

    @classmethod
    def of_published(cls, tokenizer: Tokenizer, begin: int, end: int, size: int) -> Vocabulary:
        """The vocabulary of a published model: the tokenizer's own ids, as many as the model has embeddings (`size`)."""
        tokenizer.encode_special_tokens = True  # "<|end|>" in a text is text
        without = (
            tokenizer.encode("a", add_special_tokens=False).ids
            == tokenizer.encode(" a", add_special_tokens=False).ids
        )
        return cls(tokenizer, text=TextIds(0, begin, end, size, "" if without else " "))

    def expand(self, unit_count: int, inventory: str) -> Vocabulary:
        """Add `unit_count` units and the markers; expanding again by the same is the same vocabulary."""
        if self.unit_count and (self.unit_count, self.inventory) != (unit_count, inventory):
            raise UserError(
                f"vocabulary already holds {self.unit_count} units of {self.inventory}; it can't also hold {inventory}"
            )
        return Vocabulary(self.tokenizer, unit_count, inventory, self.text)

    @property
    def text_size(self) -> int:
        return self.text.size or self.text.first_piece + self.tokenizer.get_vocab_size()

    @property
    def size(self) -> int:
        return self.text_size + (self.unit_count + 2 + len(MARKERS) if self.unit_count else 0)

    def marker(self, name: str) -> int:
        """The id of `<sosp>`, `<eosp>` or one of `MARKERS`.  Raises UserError before the vocabulary is expanded."""
        if not self.unit_count:
            raise UserError(UNEXPANDED)
        return self.text_size + self.unit_count + (SOSP, EOSP, *MARKERS).index(name)

    def has_marker(self, name: str) -> bool:
        return bool(self.unit_count) and name in (SOSP, EOSP, *MARKERS)

    @property
    def begin(self) -> int:
        return self.text.begin

    @property
    def end(self) -> int:
        return self.text.end

    @property
    def stops(self) -> list[int]:
        """The ids at which an answer is complete."""
        return [self.end, *(self.marker(name) for name in ("<eos>", "<eoa>") if self.unit_count)]

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a row."""
        return frozenset(
            {self.end, *(self.marker(name) for name in ("<eos>", "<eoa>", EOSP) if self.unit_count)}
        )

    # --- to ids ---------------------------------------------------------------------------------------------------------------
    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; markers written in it stay plain characters."""
        return self._plain(text)

    def encode_units(self, units: np.ndarray) -> list[int]:
        """Units → `<sosp>` … `<eosp>` as ids, by adding the first unit's id."""
        start, end = self.marker(SOSP), self.marker(EOSP)
        check_range(units, self.unit_count)
        return [start, *(np.asarray(units, dtype=np.int64) + self.text_size).tolist(), end]

    def encode_part(self, part: Part) -> list[int]:
        if part.kind == "units":
            return self.encode_units(part.value)
        if part.kind == "text":
            return self._plain(part.value)
        ids: list[int] = []
        for piece in _SPLIT.split(part.value):
            ids += [self.marker(piece)] if _SPLIT.fullmatch(piece) else self._plain(piece)
        return ids

    def encode_prefix(self) -> list[int]:
        """The beginning of every row, which is never learned: the templates of the lab have no meta prefix."""
        return [self.begin]

    def encode_row(self, row: Row) -> tuple[list[int], list[int]]:
        """A row → (prompt ids starting with the beginning-of-document id, answer ids)."""
        prompt = [i for part in row.prompt for i in self.encode_part(part)]
        return [self.begin, *prompt], [i for part in row.answer for i in self.encode_part(part)]

    def _plain(self, text: str) -> list[int]:
        # A blank between two parts is not encoded: the next word's piece carries its own.
        text = text.strip()
        pieces = (
            self.tokenizer.encode(self.text.lead + text, add_special_tokens=False).ids
            if text
            else []
        )
        return [self.text.first_piece + piece for piece in pieces]

    # --- from ids -------------------------------------------------------------------------------------------------------------
    def is_unit(self, token: int) -> bool:
        return 0 <= token - self.text_size < self.unit_count

    def is_text(self, token: int) -> bool:
        return self.text.first_piece <= token < self.text_size

    def units_in(self, ids: Iterable[int]) -> np.ndarray:
        """The unit ids (n,) among token ids, everything else left out."""
        return np.array([i - self.text_size for i in ids if self.is_unit(i)], dtype=np.int64)

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text pieces among token ids as text."""
        return self.tokenizer.decode(
            [i - self.text.first_piece for i in ids if self.is_text(i)]
        ).strip()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        if token in (self.begin, self.end):
            return "<begin>" if token == self.begin else "<end>"
        if token < self.text_size:
            return (
                self.tokenizer.decode([token - self.text.first_piece])
                if self.is_text(token)
                else "<pad>"
            )
        if self.is_unit(token):
            return f"<{token - self.text_size}>"
        return (SOSP, EOSP, *MARKERS)[token - self.text_size - self.unit_count]

    # --- on disk --------------------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        facts = {
            "unit_count": self.unit_count,
            "inventory": self.inventory,
            "size": self.size,
            "text": asdict(self.text),
        }
        write_json(folder / "vocabulary.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        facts = read_json(folder / "vocabulary.json")
        text = TextIds(**facts.get("text", {}))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        found = cls(tokenizer, facts["unit_count"], facts["inventory"], text)
        if found.size != facts["size"]:
            raise UserError(
                f"{folder}: the tokenizer makes {found.size} tokens, vocabulary.json says {facts['size']}: files of two runs?"
            )
        return found
