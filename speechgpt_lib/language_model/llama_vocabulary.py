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
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import META_PREFIX, Part, Row
from speechgpt_lib.language_model.unit_vocabulary import UnitVocabulary
from speechgpt_lib.runs.artefacts import read_json
from speechgpt_lib.units.sequence import EOSP, SOSP

BLANK = "▁"
ADDED_MARKERS = (SOSP, EOSP, "[Human]", "[SpeechGPT]", "<eoh>", "<eos>")
TOKENIZER = "tokenizer.model"
REMEMBERED = 200_000  # words; then all are forgotten
_SPLIT = re.compile("(" + "|".join(re.escape(marker) for marker in ADDED_MARKERS) + ")")


@dataclass(frozen=True)
class LlamaVocabulary(UnitVocabulary):
    """LLaMA's pieces, then units and markers."""

    markers, begin, end = ADDED_MARKERS, 1, 2

    processor: sentencepiece.SentencePieceProcessor
    unit_count: int = 0
    inventory: str = ""
    _words: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)
    _literals: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_file(
        cls, path: Path | str, unit_count: int = 0, inventory: str = ""
    ) -> LlamaVocabulary:
        """From LLaMA's `tokenizer.model`.

        Raises UserError for a file that is none, or whose pieces reach beyond blanks.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"no file at {path}: give LLaMA's {TOKENIZER}")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            pieces = [processor.id_to_piece(k) for k in range(processor.get_piece_size())]
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0][:100]
            raise UserError(
                f"{path} is no SentencePiece model ({why}): get tokenizer.model again"
            ) from None
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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER).write_bytes(self.processor.serialized_model_proto())
        self.write_facts(folder)

    @classmethod
    def load(cls, folder: Path) -> LlamaVocabulary:
        """What `save` wrote.  Raises UserError for files of two runs."""
        facts = read_json(Path(folder) / "vocabulary.json")
        found = cls.from_file(Path(folder) / TOKENIZER, facts["unit_count"], facts["inventory"])
        return found.check_size(Path(folder))

    # --- ids -------------------------------------------------------------------------------------
    @property
    def text_size(self) -> int:
        """Ids below the first unit."""
        return self.processor.get_piece_size()

    def is_text(self, token: int) -> bool:
        """Whether an id is one of LLaMA's."""
        return 0 <= token < self.text_size

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text pieces among token ids as text."""
        return self.processor.decode([token for token in ids if self.is_text(token)]).strip()

    def name(self, token: int) -> str:
        """A token as people write it, for pictures and error messages."""
        return self.processor.id_to_piece(token) if self.is_text(token) else self.added_name(token)

    # --- to ids ----------------------------------------------------------------------------------
    def encode_text(self, text: str) -> list[int]:
        """Plain text → ids; a marker or unit written in it stays text."""
        words = text.split(" ")
        if words[-1] == "" and self._blank is not None and len(words) > 1:
            return [*self.encode_text(text[:-1]), self._blank]  # a blank at the end is a piece
        if "" in words:  # and so are runs of blanks
            return self.processor.encode(text) if text else []
        known, ids = self._words, []
        for word in words:
            found = known.get(word)
            ids += found if found is not None else self._remember(word)
        return ids

    def encode_prefix(self, prefix: str = META_PREFIX) -> list[int]:
        """The beginning of every row: what the stages of the release don't learn."""
        return [self.begin, *self._run(prefix.rstrip(), fixed=True)]

    def encode_row(
        self, row: Row, prefix: str = META_PREFIX, tail: str = ""
    ) -> tuple[list[int], list[int]]:
        """A row → (ids of `begin`, `prefix` and prompt; ids of the answer and the `tail`).

        Texts are expected without white space at their ends.  `tail` is what the published text
        form has after the end marker: the release tokenized it too.
        """
        prompt = self._encode_parts((Part("template", prefix), *row.prompt))
        answer = self._encode_parts((*row.answer, Part("template", tail)), last=True)
        return [self.begin, *prompt], answer

    def _encode_parts(self, parts: tuple[Part, ...], last: bool = False) -> list[int]:
        """Text runs on until the next added token; `last`: nothing follows.

        So a description and the text after it are one piece.
        """
        ids: list[int] = []
        run, fixed = "", True  # text since the last added token; is all of it template?
        for part in parts:
            if part.kind == "text":
                run, fixed = run + part.value, False
            elif part.kind == "units":
                ids += self._run(run, fixed) + self.encode_units(part.value)
                run, fixed = "", True
            else:
                first, *others = _pieces(part.value)
                run += first
                for marker, text in zip(others[::2], others[1::2], strict=True):
                    ids += [*self._run(run, fixed), self.marker(marker)]
                    run, fixed = text, True
        return ids + self._run(run, fixed, last)

    def _run(self, text: str, fixed: bool, last: bool = False) -> list[int]:
        text = text.lstrip() if last else text.strip()
        if not fixed:
            return self.encode_text(text)
        if text not in self._literals:
            self._literals[text] = self.encode_text(text)
        return self._literals[text]

    def _remember(self, word: str) -> list[int]:
        if len(self._words) >= REMEMBERED:
            self._words.clear()
        return self._words.setdefault(word, self.processor.encode(word))

    @functools.cached_property
    def _blank(self) -> int | None:
        """The piece that is a blank alone."""
        found = self.processor.piece_to_id(BLANK)
        return None if found == self.processor.unk_id() else found


@functools.cache
def _pieces(template: str) -> list[str]:
    """A piece of template, cut at its added tokens."""
    return _SPLIT.split(template)
