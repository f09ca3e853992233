"""The vocabulary of the released 7B model: LLaMA's SentencePiece pieces, then the tokens that SpeechGPT adds, all ids by arithmetic.

    0 … 31999                LLaMA's pieces (0 <unk>, 1 <s>, 2 </s>, then 256 bytes)
    32000 … 32000 + K − 1    units <0> … <K−1>
    then                     <sosp> <eosp> [Human] [SpeechGPT] <eoh> <eos>

`<eoa>`, `[tq]`, `[ta]` and `[ua]` were never added: in the released model they are pieces like any other text.

Text is cut where an added token stands, white space there is dropped, and every piece starts like a new sentence (SentencePiece's dummy
prefix): the ways of the tokenizer that the release was trained with.  The release pushed whole rows through it, a unit at a time, and
every prompt twice.  Here units never become text, template pieces are encoded once, and words are remembered: no piece of a
SentencePiece model reaches beyond a blank, so a sentence's ids are those of its words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import META_PREFIX, Part, Row
from speechgpt_lib.language_model.vocabulary import UNEXPANDED
from speechgpt_lib.runs.artefacts import read_json, write_json
from speechgpt_lib.units.sequence import EOSP, SOSP, check_range

BLANK = "▁"
ADDED_MARKERS = (SOSP, EOSP, "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")
TOKENIZER = "tokenizer.model"
REMEMBERED = 200_000  # words; then all are forgotten


@dataclass(frozen=True)
class LlamaVocabulary:
    """LLaMA's pieces and the added tokens; `inventory` is the id of the units' inventory."""

    processor: sentencepiece.SentencePieceProcessor
    unit_count: int = 0
    inventory: str = ""
    _words: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)
    _literals: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_file(
        cls, path: Path | str, unit_count: int = 0, inventory: str = ""
    ) -> LlamaVocabulary:
        """From LLaMA's `tokenizer.model`.  Raises UserError for a file that is none, or whose pieces reach beyond blanks."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"no file at {path}: give LLaMA's {TOKENIZER}")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            pieces = [processor.id_to_piece(k) for k in range(processor.get_piece_size())]
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} is no SentencePiece model ({str(error).splitlines()[0][:100]}): get tokenizer.model again"
            ) from None
        if pieces[:3] != ["<unk>", "<s>", "</s>"]:
            raise UserError(
                f"{path} starts with {' '.join(pieces[:3])}, expected <unk> <s> </s>: this is no tokenizer of LLaMA"
            )
        if beyond := [
            piece
            for piece in pieces
            if BLANK in piece.strip(BLANK) or (piece.endswith(BLANK) and piece.strip(BLANK))
        ]:
            raise UserError(
                f"{path} has the piece {beyond[0]!r}, which reaches beyond a blank: this is no tokenizer of LLaMA"
            )
        if processor.encode("ﬁ①") == processor.encode("fi1"):
            raise UserError(
                f"{path} rewrites characters before it cuts them up; LLaMA's tokenizer doesn't"
            )
        return cls(processor, unit_count, inventory)

    def expand(self, unit_count: int, inventory: str) -> LlamaVocabulary:
        """Add `unit_count` units and the markers; expanding again by the same is the same vocabulary."""
        if self.unit_count and (self.unit_count, self.inventory) != (unit_count, inventory):
            raise UserError(
                f"vocabulary already holds {self.unit_count} units of {self.inventory}; it can't also hold {inventory}"
            )
        return LlamaVocabulary(self.processor, unit_count, inventory)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER).write_bytes(self.processor.serialized_model_proto())
        write_json(
            folder / "vocabulary.json",
            {"unit_count": self.unit_count, "inventory": self.inventory, "size": self.size},
        )

    @classmethod
    def load(cls, folder: Path) -> LlamaVocabulary:
        """What `save` wrote."""
        facts = read_json(Path(folder) / "vocabulary.json")
        found = cls.from_file(Path(folder) / TOKENIZER, facts["unit_count"], facts["inventory"])
        if found.size != facts["size"]:
            raise UserError(
                f"{folder}: the tokenizer makes {found.size} tokens, vocabulary.json says {facts['size']}: files of two runs?"
            )
        return found

    # --- ids ----------------------------------------------------------------------------------------------------------------------
    @property
    def text_size(self) -> int:
        return self.processor.get_piece_size()

    @property
    def size(self) -> int:
        return self.text_size + (self.unit_count + len(ADDED_MARKERS) if self.unit_count else 0)

    @property
    def begin(self) -> int:
        return 1

    @property
    def end(self) -> int:
        return 2

    @property
    def stops(self) -> list[int]:
        """The ids at which an answer is complete."""
        return [self.end, *((self.marker("<eos>"),) if self.unit_count else ())]

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a row: `</s>`, `<eosp>` and `<eos>` (the release's `<eoa>` is no token)."""
        return frozenset(
            {self.end, *((self.marker(EOSP), self.marker("<eos>")) if self.unit_count else ())}
        )

    def marker(self, name: str) -> int:
        """The id of one of `ADDED_MARKERS`.  Raises UserError before the vocabulary is expanded."""
        if not self.unit_count:
            raise UserError(UNEXPANDED)
        return self.text_size + self.unit_count + ADDED_MARKERS.index(name)

    def has_marker(self, name: str) -> bool:
        return bool(self.unit_count) and name in ADDED_MARKERS

    def is_unit(self, token: int) -> bool:
        return 0 <= token - self.text_size < self.unit_count

    def is_text(self, token: int) -> bool:
        return 0 <= token < self.text_size

    def units_in(self, ids: Iterable[int]) -> np.ndarray:
        """The unit ids (n,) among token ids, everything else left out."""
        return np.array([i - self.text_size for i in ids if self.is_unit(i)], dtype=np.int64)

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text pieces among token ids as text."""
        return self.processor.decode([token for token in ids if self.is_text(token)]).strip()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        if self.is_text(token):
            return self.processor.id_to_piece(token)
        return (
            f"<{token - self.text_size}>"
            if self.is_unit(token)
            else ADDED_MARKERS[token - self.text_size - self.unit_count]
        )

    # --- to ids -------------------------------------------------------------------------------------------------------------------
    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; a marker or unit written in it stays text."""
        words = text.split(" ")
        if (
            words[-1] == "" and self._blank is not None and len(words) > 1
        ):  # a blank at the end is a piece of its own
            return [*self.encode_text(text[:-1]), self._blank]
        if "" in words:  # and so are runs of blanks
            return self.processor.encode(text) if text else []
        known, ids = self._words, []
        for word in words:
            found = known.get(word)
            ids += found if found is not None else self._remember(word)
        return ids

    def encode_units(self, units: np.ndarray) -> list[int]:
        """Units → `<sosp>` … `<eosp>` as ids, by adding the first unit's id."""
        start, end = self.marker(SOSP), self.marker(EOSP)
        check_range(units, self.unit_count)
        return [start, *(np.asarray(units, dtype=np.int64) + self.text_size).tolist(), end]

    def encode_prefix(self, prefix: str = META_PREFIX) -> list[int]:
        """The beginning of every row: what the stages of the release don't learn."""
        return [self.begin, *self._run(prefix.rstrip(), fixed=True)]

    def encode_row(
        self, row: Row, prefix: str = META_PREFIX, tail: str = ""
    ) -> tuple[list[int], list[int]]:
        """A row → (ids of `prefix` and prompt, starting with the beginning-of-document id; ids of the answer and the `tail`).

        Texts are expected without white space at their ends.  `tail` is what the published text form has after the end marker: the
        release tokenized it too.
        """
        prompt = self._encode_parts((Part("template", prefix), *row.prompt))
        return [self.begin, *prompt], self._encode_parts(
            (*row.answer, Part("template", tail)), last=True
        )

    def _encode_parts(self, parts: tuple[Part, ...], last: bool = False) -> list[int]:
        """Text runs on until the next added token: a description and the text after it are one piece.  `last`: nothing follows."""
        ids: list[int] = []
        run, fixed = (
            "",
            True,
        )  # text since the last added token, and whether the template alone has made it
        for part in parts:
            if part.kind == "text":
                run, fixed = run + part.value, False
            elif part.kind == "units":
                ids += self._run(run, fixed)
                ids += self.encode_units(part.value)
                run, fixed = "", True
            else:
                pieces = _pieces(part.value)
                run += pieces[0]
                for marker, text in zip(pieces[1::2], pieces[2::2], strict=True):
                    ids += self._run(run, fixed)
                    ids.append(self.marker(marker))
                    run, fixed = text, True
        return ids + self._run(run, fixed, last)

    def _run(self, text: str, fixed: bool, last: bool = False) -> list[int]:
        text = text.lstrip() if last else text.strip()
        if not fixed:
            return self.encode_text(text)
        found = self._literals.get(text)
        return (
            found if found is not None else self._literals.setdefault(text, self.encode_text(text))
        )

    def _remember(self, word: str) -> list[int]:
        if len(self._words) >= REMEMBERED:
            self._words.clear()
        return self._words.setdefault(word, self.processor.encode(word))

    @functools.cached_property
    def _blank(self) -> int | None:
        """The piece that is a blank alone."""
        found = self.processor.piece_to_id(BLANK)
        return None if found == self.processor.unk_id() else found


_SPLIT = re.compile("(" + "|".join(re.escape(marker) for marker in ADDED_MARKERS) + ")")


@functools.cache
def _pieces(template: str) -> list[str]:
    """A piece of template, cut at its added tokens."""
    return _SPLIT.split(template)
