"""The vocabulary of the released 7B model: LLaMA's pieces, then the tokens that SpeechGPT adds.

    0 … 31999                LLaMA's pieces (0 <unk>, 1 <s>, 2 </s>, then 256 bytes)
    32000 … 32000 + K − 1    units <0> … <K−1>
    then                     <sosp> <eosp> [Human] [SpeechGPT] <eoh> <eos>

`<eoa>`, `[tq]`, `[ta]` and `[ua]` were never added: in the released model they are pieces like any
other text.

Text is cut where an added token stands, white space there is dropped, and every piece starts like a
new sentence (SentencePiece's dummy prefix): the ways of the tokenizer that the release was trained
with.  The release pushed whole rows through it, a unit at a time, and every prompt twice.  Here
units never become text, template pieces are encoded once, and words are remembered: no piece of a
SentencePiece model reaches beyond a blank, so a sentence's ids are those of its words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sentencepiece

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.instructions.templates import META_PREFIX, Part
from speechgpt_lib.language_model.vocabulary import UnitVocabulary, cut
from speechgpt_lib.units.sequence import EOSP, SOSP

BLANK = "▁"
ADDED_MARKERS = (SOSP, EOSP, "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")
TOKENIZER = "tokenizer.model"
REMEMBERED = 200_000  # words


@dataclass(frozen=True)
class LlamaVocabulary(UnitVocabulary):
    """LLaMA's pieces, then units and markers."""

    markers, prefix, begin, end = ADDED_MARKERS, META_PREFIX, 1, 2

    @classmethod
    def from_file(cls, path: Path, unit_count: int = 0, inventory: str = "") -> Self:
        """From LLaMA's `tokenizer.model`.

        Raises UserError for a file that is none, or whose pieces reach beyond blanks.
        """
        if not path.is_file():
            raise UserError(f"no file at {path}: give LLaMA's {TOKENIZER}")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            pieces = [processor.id_to_piece(k) for k in range(processor.get_piece_size())]
        except (RuntimeError, ValueError) as error:
            found = f"{path} is no SentencePiece model ({one_line(error)})"
            raise UserError(f"{found}: get {TOKENIZER} again") from None
        beyond = [p for p in pieces if BLANK in p.strip(BLANK) or p.rstrip(BLANK) not in ("", p)]
        wrong = ""
        if pieces[:3] != ["<unk>", "<s>", "</s>"]:
            wrong = f"starts with {' '.join(pieces[:3])}, expected <unk> <s> </s>"
        elif beyond:
            wrong = f"has the piece {beyond[0]!r}, which reaches beyond a blank"
        elif processor.encode("ﬁ①") == processor.encode("fi1"):
            wrong = "rewrites characters before it cuts them up"
        if wrong:
            raise UserError(f"{path} {wrong}: this is no tokenizer of LLaMA")
        return cls(processor, unit_count, inventory)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` and `vocabulary.json` into `folder`."""
        (folder / TOKENIZER).write_bytes(self.tokenizer.serialized_model_proto())
        super().save(folder)

    @classmethod
    def read(cls, folder: Path, facts: dict) -> Self:
        """From `tokenizer.model` and the contents of `vocabulary.json`."""
        return cls.from_file(folder / TOKENIZER, facts["unit_count"], facts["inventory"])

    @property
    def text_size(self) -> int:
        """Ids below the first unit."""
        return self.tokenizer.get_piece_size()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        return self.tokenizer.id_to_piece(token) if self.is_text(token) else super().name(token)

    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; a marker or unit written in it stays text."""
        words = text.split(" ")
        if "" in words:  # runs of blanks are pieces, too
            return self.tokenizer.encode(text)
        return [piece for word in words for piece in self._word(word)]

    def _encode(self, parts: tuple[Part, ...]) -> list[int]:
        """Text runs on until the next added token: a description and what follows are one piece."""
        ids: list[int] = []
        run, encode = "", self._template  # text since the last added token; is all of it template?
        for part in parts:
            if part.kind == "text":
                run, encode = run + part.value, self.encode_text
            elif part.kind == "units":
                ids += encode(run.strip()) + self.encode_units(part.value)
                run, encode = "", self._template
            else:
                first, *others = cut(part.value, ADDED_MARKERS)
                run += first
                for marker, text in zip(others[::2], others[1::2], strict=True):
                    ids += [*encode(run.strip()), self.marker(marker)]
                    run, encode = text, self._template
        return ids + encode(run.strip())

    # Functions that remember what they returned.
    @functools.cached_property
    def _word(self) -> Callable[[str], list[int]]:
        return functools.lru_cache(REMEMBERED)(self.tokenizer.encode)

    @functools.cached_property
    def _template(self) -> Callable[[str], list[int]]:
        return functools.cache(self.encode_text)
