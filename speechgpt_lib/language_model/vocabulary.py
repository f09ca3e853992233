"""Vocabularies of `lab` and of the released 7B model: text, then units and markers by arithmetic.

    lab         released
    0 … T−1     0 … 31999    text; first padding, begin and end, or <unk>, <s>, </s> and 256 bytes
    T …         32000 …      units <0> … <K−1>
    T+K …       32000+K …    <sosp> <eosp> [Human] [SpeechGPT] <eoh> <eos>
    T+K+6 …                  <eoa> [tq] [ta] [ua], which are text in the released model

So a text can never become a marker or a unit: it passes through the text tokenizer alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import sentencepiece
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from speechgpt_lib.errors import UserError, reading, reads
from speechgpt_lib.instructions.templates import MARKERS, META_PREFIX, Part, Row
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.units.sequence import EOSP, SOSP, check_range

PAD, BEGIN, END, FIRST_PIECE = 0, 1, 2, 3
BLANK = "▁"  # in LLaMA's pieces
ADDED_MARKERS = (SOSP, EOSP, "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")  # in the released model
TOKENIZER = "tokenizer.model"
REMEMBERED = 200_000  # words


@dataclass(frozen=True)
class UnitVocabulary:
    """What all vocabularies share; `inventory` is the id of the units' inventory.

    Text pieces alone, until it is expanded (`unit_count` > 0).  Each kind adds what depends on its
    tokenizer: `encode_text`, `_text` and `text_size`.
    """

    tokenizer: Any
    unit_count: int = 0
    inventory: str = ""

    markers: ClassVar[tuple[str, ...]]  # in the order of their ids
    prefix: ClassVar[str] = ""  # of every prompt
    first_piece: ClassVar[int] = 0  # id of the tokenizer's first piece
    begin: ClassVar[int]  # of a document
    end: ClassVar[int]
    text_size: ClassVar[int]  # ids below the first unit
    joins: ClassVar[bool] = True  # whether text runs on from part to part

    @property
    def size(self) -> int:
        """The number of ids in all."""
        return self.text_size + (self.unit_count + len(self.markers) if self.unit_count else 0)

    def expand(self, unit_count: int, inventory: str) -> Self:
        """Add `unit_count` units and the markers; once more by the same is the same vocabulary."""
        if self.unit_count and (self.unit_count, self.inventory) != (unit_count, inventory):
            held = f"{self.unit_count} units of {self.inventory}"
            raise UserError(f"vocabulary already holds {held}; it can't also hold {inventory}")
        return replace(self, unit_count=unit_count, inventory=inventory)

    def marker(self, name: str) -> int:
        """The id of one of `markers`.  Raises UserError before the vocabulary is expanded."""
        if not self.unit_count:
            raise UserError("the vocabulary has no units and markers yet: expand it (notebook 05)")
        return self.text_size + self.unit_count + self.markers.index(name)

    @property
    def stops(self) -> list[int]:
        """The ids at which an answer is complete."""
        own = self.markers if self.unit_count else ()
        return [self.end, *(self.marker(m) for m in ("<eos>", "<eoa>") if m in own)]

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
        prompt, answer = (Part("template", self.prefix), *row.prompt), row.answer
        if answer and isinstance(last := prompt[-1].value, str) and last != last.rstrip():
            answer = (Part("template", " "), *answer)  # the blank belongs to the word behind it
        return [self.begin, *self._encode(prompt)], self._encode(answer, first=False)

    def _encode(self, parts: tuple[Part, ...], first: bool = True) -> list[int]:
        """Parts → ids; `first`: at the start of a row.  Text is encoded up to the next added token,
        or, in vocabularies that don't join parts, up to the end of a part."""
        ids: list[int] = []
        run, template = "", True  # text since the last added token; is all of it template?
        for part in parts:
            if part.kind == "text":
                run, template = run + part.value, False
            elif part.kind == "units":
                ids += self._text(run, template, first and not ids) + self.encode_units(part.value)
                run, template = "", True
            else:
                start, *others = cut(part.value, self.markers)
                run += start
                for marker, text in zip(others[::2], others[1::2], strict=True):
                    ids += [*self._text(run, template, first and not ids), self.marker(marker)]
                    run, template = text, True
            if not self.joins:
                ids += self._text(run, template, first)
                run, template = "", True
        return ids + self._text(run, template, first and not ids)

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

    @staticmethod
    @reads("has no whole vocabulary", "run its step again")
    def load(folder: Path) -> UnitVocabulary:
        """What `save` wrote.  Raises UserError for files of two runs."""
        facts = read_json(folder / "vocabulary.json")
        if (folder / TOKENIZER).is_file():
            found = LlamaVocabulary.from_file(folder / TOKENIZER)
        else:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.encode_special_tokens = True  # "<|end|>" in a text is text
            text = facts.get("text", {})
            found = Vocabulary(tokenizer, pieces=text.pop("size", None), **text)
        found, said = found.expand(facts["unit_count"], facts["inventory"]), facts["size"]
        if found.size != said:
            size = f"the tokenizer makes {found.size} tokens, vocabulary.json says {said}"
            raise UserError(f"{folder}: {size}: files of two runs?")
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
    as many as the tokenizer has).  With `joins`, text in a row has the ids that it gives it
    there; else each part is encoded by itself, after a `lead`.
    """

    markers = (SOSP, EOSP, *MARKERS)

    first_piece: int = FIRST_PIECE
    begin: int = BEGIN
    end: int = END
    pieces: int | None = None
    lead: str = ""
    joins: bool = False

    @property
    def text_size(self) -> int:
        """Ids below the first unit."""
        return self.pieces or self.first_piece + self.tokenizer.get_vocab_size()

    def encode_text(self, text: str, first: bool = True) -> list[int]:
        """Plain text → ids; markers written in it stay plain characters.

        Where it is not the `first` of a row it follows other text and a blank.
        """
        if self.joins and not first:
            return self._text(f" {text}", False, first)
        if self.joins:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        # A blank between two parts is not encoded: the next word's piece carries its own.
        text = text.strip()
        if not text:
            return []
        pieces = self.tokenizer.encode(self.lead + text, add_special_tokens=False).ids
        return [self.first_piece + piece for piece in pieces]

    def _text(self, text: str, template: bool, first: bool) -> list[int]:
        if not self.joins:
            return self.encode_text(text)
        # White space before an added token is dropped, after it where a blank is put there anyway.
        tokenizer, puts_blank = self._ways[first]
        text = text.rstrip()
        return tokenizer.encode(text.lstrip() if puts_blank else text, add_special_tokens=False).ids

    @functools.cached_property
    def _ways(self) -> dict[bool, tuple[Tokenizer, bool]]:
        """At the start of a row or not → the tokenizer, whether it puts a blank before a text."""
        # SentencePiece's newer ones put it before the first word of a row alone.
        old, new = (f'"prepend_scheme":"{scheme}"' for scheme in ("first", "never"))
        further = Tokenizer.from_str(self.tokenizer.to_str().replace(old, new))
        further.encode_special_tokens = True
        ways = {True: self.tokenizer, False: further}
        bare = {k: t.encode("a", add_special_tokens=False).tokens for k, t in ways.items()}
        return {k: (t, "".join(bare[k]) != "a") for k, t in ways.items()}

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        special = {self.begin: "<begin>", self.end: "<end>"}
        if self.is_text(token) and token not in special:
            return self.tokenizer.decode([token - self.first_piece])
        return special.get(token, "<pad>") if token < self.text_size else super().name(token)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `vocabulary.json` into `folder`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        ids = {"first_piece": self.first_piece, "begin": self.begin, "end": self.end}
        ids |= {"size": self.pieces, "lead": self.lead} | ({"joins": True} if self.joins else {})
        super().save(folder, text=ids)


@dataclass(frozen=True)
class LlamaVocabulary(UnitVocabulary):
    """LLaMA's pieces, then units and markers: the vocabulary of the released model.

    Text is cut where an added token stands, white space there is dropped, and every piece starts
    like a new sentence (SentencePiece's dummy prefix): the ways of the tokenizer that the release
    was trained with.  Here template pieces are encoded once, and words are remembered: no piece of
    LLaMA's reaches beyond a blank, so a sentence's ids are those of its words.
    """

    markers, prefix, begin, end = ADDED_MARKERS, META_PREFIX, 1, 2

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """From LLaMA's `tokenizer.model`.  Raises UserError for a file that is none."""
        if not path.is_file():
            raise UserError(f"no file at {path}: give LLaMA's {TOKENIZER}")
        with reading(path, "get it again", "is no SentencePiece model"):
            processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            pieces = [processor.id_to_piece(k) for k in range(processor.get_piece_size())]
        beyond = [p for p in pieces if BLANK in p.strip(BLANK) or p.rstrip(BLANK) not in ("", p)]
        wrong = ""
        if pieces[:3] != ["<unk>", "<s>", "</s>"]:
            wrong = f"starts with {' '.join(pieces[:3])}, expected <unk> <s> </s>"
        elif beyond:
            wrong = f"has the piece {beyond[0]!r}, which reaches beyond a blank"
        elif processor.encode("a a") != 2 * processor.encode("a"):
            wrong = "puts no blank before a text"
        elif processor.encode("ﬁ①") == processor.encode("fi1"):
            wrong = "rewrites characters before it cuts them up"
        if wrong:
            raise UserError(f"{path} {wrong}: this is no tokenizer of LLaMA")
        return cls(processor)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` and `vocabulary.json` into `folder`."""
        (folder / TOKENIZER).write_bytes(self.tokenizer.serialized_model_proto())
        super().save(folder)

    @property
    def text_size(self) -> int:
        """Ids below the first unit."""
        return self.tokenizer.get_piece_size()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        return self.tokenizer.id_to_piece(token) if self.is_text(token) else super().name(token)

    def encode_text(self, text: str, first: bool = True) -> list[int]:
        """Plain text → ids; a marker or unit written in it stays text."""
        words = text.split(" ")
        if "" in words:  # runs of blanks are pieces, too
            return self.tokenizer.encode(text)
        return [piece for word in words for piece in self._word(word)]

    def _text(self, text: str, template: bool, first: bool) -> list[int]:
        return (self._template if template else self.encode_text)(text.strip())

    # Functions that remember what they returned.
    @functools.cached_property
    def _word(self) -> Callable[[str], list[int]]:
        return functools.lru_cache(REMEMBERED)(self.tokenizer.encode)

    @functools.cached_property
    def _template(self) -> Callable[[str], list[int]]:
        return functools.cache(self.encode_text)


@functools.lru_cache
def cut(text: str, markers: tuple[str, ...]) -> list[str]:
    """A text cut at the markers in it: text and markers in turn, text first and last."""
    return re.split("(" + "|".join(map(re.escape, markers)) + ")", text)


def read_tokenizer(folder: Path, config: transformers.PretrainedConfig) -> UnitVocabulary:
    """The text vocabulary of a published model from its folder and configuration.

    From `tokenizer.model` (SentencePiece: LLaMA 1, 2), else `tokenizer.json` (fast BPE), whose ids
    it keeps.  Raises UserError for none, or one that is damaged or of another model.
    """
    path, size = folder / "tokenizer.json", config.vocab_size
    # LLaMA 3's `tokenizer.model` is no SentencePiece model but a list, beside a tokenizer.json.
    if (model := folder / TOKENIZER).is_file():
        with open(model, "rb") as file:
            if file.read(1) == b"\n" or not path.is_file():
                return LlamaVocabulary.from_file(model)
    if not path.is_file():
        raise UserError(f"no tokenizer in {folder}: expected {TOKENIZER} or {path.name}")
    with reading(path, "get it again", "is no tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    if (pieces := max(tokenizer.get_vocab().values(), default=-1) + 1) > size:
        raise UserError(f"{path} has {pieces} pieces, the model {size} embeddings: of two models?")
    if {"<0>", "<1>", SOSP} <= tokenizer.get_vocab().keys():
        raise UserError(f"{path} has units <0> <1> … already: is it a model for imports.stage2?")
    ends = (config.bos_token_id, config.eos_token_id)
    begin, end = (ids[0] if isinstance(ids, list) else ids for ids in ends)
    if begin is None or end is None:
        raise UserError(f"{folder}/config.json lacks bos_token_id or eos_token_id: add them")
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # a file may state a longest text, which belongs to its last use
    tokenizer.no_padding()
    return Vocabulary(tokenizer, 0, "", 0, begin, end, pieces=size, joins=True)
