"""The vocabulary of SpeechGPT in `lab`: a text tokenizer, expanded by units and markers.

    0, 1, 2                 padding, beginning of a document, end of a document
    3 … T−1                 pieces of the text tokenizer (byte-level BPE)
    T … T+K−1               units <0> … <K−1>
    T+K, T+K+1              <sosp> <eosp>
    then                    [Human] [SpeechGPT] <eoh> <eos> <eoa> [tq] [ta] [ua]

That is the order of the release, to which the lab adds the last four.  A published model with a
fast BPE tokenizer brings ids of its own for everything below T (`TextIds`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from speechgpt_lib.instructions.templates import MARKERS, Part, Row
from speechgpt_lib.language_model.unit_vocabulary import UnitVocabulary
from speechgpt_lib.runs.artefacts import read_json
from speechgpt_lib.units.sequence import EOSP, SOSP

PAD, BEGIN, END = 0, 1, 2
FIRST_PIECE = 3
_SPLIT = re.compile("(" + "|".join(re.escape(marker) for marker in (SOSP, EOSP, *MARKERS)) + ")")


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
class TextIds:
    """How a text tokenizer's pieces become ids: moved up by `first_piece`, `size` ids in all.

    A `size` of None is as many as there are pieces.  `lead` is written before a text: a blank for
    tokenizers that expect one before a word and don't add it themselves.
    """

    first_piece: int = FIRST_PIECE
    begin: int = BEGIN
    end: int = END
    size: int | None = None
    lead: str = ""


@dataclass(frozen=True)
class Vocabulary(UnitVocabulary):
    """Pieces of a BPE tokenizer, then units and markers."""

    markers = (SOSP, EOSP, *MARKERS)

    tokenizer: Tokenizer
    unit_count: int = 0
    inventory: str = ""
    text: TextIds = TextIds()

    @classmethod
    def of_published(cls, tokenizer: Tokenizer, begin: int, end: int, size: int) -> Vocabulary:
        """The tokenizer's own ids, as many as the published model has embeddings (`size`)."""
        tokenizer.encode_special_tokens = True  # "<|end|>" in a text is text
        bare, led = (tokenizer.encode(a, add_special_tokens=False).ids for a in ("a", " a"))
        return cls(tokenizer, text=TextIds(0, begin, end, size, "" if bare == led else " "))

    @property
    def text_size(self) -> int:
        """Ids below the first unit."""
        return self.text.size or self.text.first_piece + self.tokenizer.get_vocab_size()

    @property
    def begin(self) -> int:
        """The id that begins a document."""
        return self.text.begin

    @property
    def end(self) -> int:
        """The id that ends a document."""
        return self.text.end

    # --- to ids ----------------------------------------------------------------------------------
    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; markers written in it stay plain characters."""
        # A blank between two parts is not encoded: the next word's piece carries its own.
        text = text.strip()
        if not text:
            return []
        pieces = self.tokenizer.encode(self.text.lead + text, add_special_tokens=False).ids
        return [self.text.first_piece + piece for piece in pieces]

    def encode_part(self, part: Part) -> list[int]:
        """Units, a text, or a stretch of template whose markers become ids."""
        if part.kind == "units":
            return self.encode_units(part.value)
        if part.kind == "text":
            return self.encode_text(part.value)
        ids: list[int] = []
        for k, piece in enumerate(_SPLIT.split(part.value)):  # every second one is a marker
            ids += [self.marker(piece)] if k % 2 else self.encode_text(piece)
        return ids

    def encode_prefix(self) -> list[int]:
        """The beginning of every row: the templates of the lab have no meta prefix."""
        return [self.begin]

    def encode_row(self, row: Row) -> tuple[list[int], list[int]]:
        """A row → (prompt ids starting with the beginning-of-document id, answer ids)."""
        prompt, answer = (
            [i for part in parts for i in self.encode_part(part)]
            for parts in (row.prompt, row.answer)
        )
        return [self.begin, *prompt], answer

    # --- from ids --------------------------------------------------------------------------------
    def is_text(self, token: int) -> bool:
        """Whether an id is a piece of text; padding, begin and end of the lab's are none."""
        return self.text.first_piece <= token < self.text_size

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text pieces among token ids as text."""
        pieces = [i - self.text.first_piece for i in ids if self.is_text(i)]
        return self.tokenizer.decode(pieces).strip()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        if token in (self.begin, self.end):
            return "<begin>" if token == self.begin else "<end>"
        if self.is_text(token):
            return self.tokenizer.decode([token - self.text.first_piece])
        return "<pad>" if token < self.text_size else self.added_name(token)

    # --- on disk ---------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `vocabulary.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        self.write_facts(folder, text=asdict(self.text))

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """What `save` wrote.  Raises UserError for files of two runs."""
        facts = read_json(folder / "vocabulary.json")
        text = TextIds(**facts.get("text", {}))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        found = cls(tokenizer, facts["unit_count"], facts["inventory"], text)
        return found.check_size(folder)
