"""Vocabularies: a text tokenizer's ids, then units and markers by arithmetic, as in the release.

    0 … T−1         text; in `lab` 0, 1, 2 are padding, begin and end of a document, then BPE pieces
    T … T+K−1       units <0> … <K−1>
    then            <sosp> <eosp> [Human] [SpeechGPT] <eoh> <eos>; in `lab` <eoa> [tq] [ta] [ua] too

So a text can never become a marker or a unit: it passes through the text tokenizer alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import MARKERS, Part, Row
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.units.sequence import EOSP, SOSP, check_range

PAD, BEGIN, END = 0, 1, 2
FIRST_PIECE = 3


@dataclass(frozen=True)
class UnitVocabulary:
    """What all vocabularies share; `inventory` is the id of the units' inventory.

    Text pieces alone, until it is expanded (`unit_count` > 0).  Each kind adds what depends on its
    tokenizer: `encode_text`, `_encode`, `read` and `text_size`.
    """

    markers: ClassVar[tuple[str, ...]]  # in the order of their ids
    prefix: ClassVar[str] = ""  # of every prompt
    begin: ClassVar[int]  # of a document
    end: ClassVar[int]
    first_piece: ClassVar[int] = 0  # id of the tokenizer's first piece
    text_size: ClassVar[int]  # ids below the first unit

    tokenizer: Any
    unit_count: int = 0
    inventory: str = ""

    @property
    def size(self) -> int:
        """The number of ids in all."""
        return self.text_size + (self.unit_count + len(self.markers) if self.unit_count else 0)

    def expand(self, unit_count: int, inventory: str) -> Self:
        """Add `unit_count` units and the markers; once more by the same is the same vocabulary."""
        if self.unit_count and (self.unit_count, self.inventory) != (unit_count, inventory):
            raise UserError(
                f"vocabulary already holds {self.unit_count} units of {self.inventory}; "
                f"it can't also hold {inventory}"
            )
        return replace(self, unit_count=unit_count, inventory=inventory)

    def has_marker(self, name: str) -> bool:
        """Whether `name` is an id of its own."""
        return bool(self.unit_count) and name in self.markers

    def marker(self, name: str) -> int:
        """The id of one of `markers`.  Raises UserError before the vocabulary is expanded."""
        if not self.unit_count:
            raise UserError(
                "this vocabulary has no units and markers yet: expand it and its model first "
                "(notebook 05_vocabulary_expansion.ipynb)"
            )
        return self.text_size + self.unit_count + self.markers.index(name)

    @property
    def stops(self) -> list[int]:
        """The ids at which an answer is complete."""
        return [self.end, *(self.marker(m) for m in ("<eos>", "<eoa>") if self.has_marker(m))]

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a row: `stops` and `<eosp>`."""
        return frozenset(self.stops + ([self.marker(EOSP)] if self.unit_count else []))

    def is_text(self, token: int) -> bool:
        """Whether an id is a piece of text; padding, begin and end of the lab's are none."""
        return self.first_piece <= token < self.text_size

    def is_unit(self, token: int) -> bool:
        """Whether an id is a unit."""
        return 0 <= token - self.text_size < self.unit_count

    def encode_units(self, units: np.ndarray) -> list[int]:
        """Units (n,) → `<sosp>` … `<eosp>` as ids, by adding the first unit's id."""
        start, end = self.marker(SOSP), self.marker(EOSP)
        check_range(units, self.unit_count)
        return [start, *(np.asarray(units, dtype=np.int64) + self.text_size).tolist(), end]

    def encode_row(self, row: Row) -> tuple[list[int], list[int]]:
        """A row → (ids of `begin`, the prefix and the prompt; ids of the answer)."""
        prompt = self._encode((Part("template", self.prefix), *row.prompt))
        return [self.begin, *prompt], self._encode(row.answer)

    def units_in(self, ids: Iterable[int]) -> np.ndarray:
        """The unit ids (n,) among token ids, everything else left out."""
        return np.array([i - self.text_size for i in ids if self.is_unit(i)], dtype=np.int64)

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text pieces among token ids as text."""
        return self.tokenizer.decode([i - self.first_piece for i in ids if self.is_text(i)]).strip()

    def name(self, token: int) -> str:
        """A unit or marker as people write it, for pictures and error messages."""
        number = token - self.text_size
        return f"<{number}>" if self.is_unit(token) else self.markers[number - self.unit_count]

    def save(self, folder: Path, **more) -> None:
        """Write `vocabulary.json` into `folder`; each kind writes its tokenizer beside it."""
        facts = {"unit_count": self.unit_count, "inventory": self.inventory, "size": self.size}
        write_json(folder / "vocabulary.json", facts | more)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote.  Raises UserError for files of two runs."""
        facts = read_json(folder / "vocabulary.json")
        found, said = cls.read(folder, facts), facts["size"]
        if found.size != said:
            raise UserError(
                f"{folder}: the tokenizer makes {found.size} tokens, vocabulary.json says {said}: "
                "files of two runs?"
            )
        return found


def train_text_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE over `texts` with at most `size` pieces; no byte is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Vocabulary(UnitVocabulary):
    """Pieces of a BPE tokenizer, then units and markers: the vocabulary of `lab`.

    A published model with such a tokenizer brings ids of its own for text, `pieces` in all (None:
    as many as the tokenizer has).  `lead` is written before a text: a blank for tokenizers that
    expect one before a word and don't add it themselves.
    """

    markers = (SOSP, EOSP, *MARKERS)

    first_piece: int = FIRST_PIECE
    begin: int = BEGIN
    end: int = END
    pieces: int | None = None
    lead: str = ""

    @classmethod
    def of_published(cls, tokenizer: Tokenizer, begin: int, end: int, size: int) -> Self:
        """The tokenizer's own ids, as many as the published model has embeddings (`size`)."""
        tokenizer.encode_special_tokens = True  # "<|end|>" in a text is text
        bare, led = (tokenizer.encode(a, add_special_tokens=False).ids for a in ("a", " a"))
        return cls(tokenizer, 0, "", 0, begin, end, size, "" if bare == led else " ")

    @property
    def text_size(self) -> int:
        """Ids below the first unit."""
        return self.pieces or self.first_piece + self.tokenizer.get_vocab_size()

    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; markers written in it stay plain characters."""
        # A blank between two parts is not encoded: the next word's piece carries its own.
        text = text.strip()
        if not text:
            return []
        pieces = self.tokenizer.encode(self.lead + text, add_special_tokens=False).ids
        return [self.first_piece + piece for piece in pieces]

    def _encode(self, parts: tuple[Part, ...]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            if part.kind == "units":
                ids += self.encode_units(part.value)
            elif part.kind == "text":
                ids += self.encode_text(part.value)
            else:
                for k, piece in enumerate(cut(part.value, self.markers)):
                    ids += [self.marker(piece)] if k % 2 else self.encode_text(piece)
        return ids

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        if token in (self.begin, self.end):
            return "<begin>" if token == self.begin else "<end>"
        if self.is_text(token):
            return self.tokenizer.decode([token - self.first_piece])
        return "<pad>" if token < self.text_size else super().name(token)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `vocabulary.json` into `folder`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        ids = {"first_piece": self.first_piece, "begin": self.begin, "end": self.end}
        super().save(folder, text=ids | {"size": self.pieces, "lead": self.lead})

    @classmethod
    def read(cls, folder: Path, facts: dict) -> Self:
        """From `tokenizer.json` and the contents of `vocabulary.json`."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        text = dict(facts.get("text", {}))
        pieces = text.pop("size", None)
        return cls(tokenizer, facts["unit_count"], facts["inventory"], pieces=pieces, **text)


@functools.lru_cache
def cut(text: str, markers: tuple[str, ...]) -> list[str]:
    """A text cut at the markers in it: text and markers in turn, text first and last."""
    return re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
