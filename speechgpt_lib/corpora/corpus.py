"""One interface to every corpus: what a step may ask of it, whatever it is and wherever it lies.

`lab` is one reader, LibriSpeech another.  No step asks which one it has: it reads the utterance table that
`build` wrote, and asks for text, questions or a judge; a corpus that has none answers with nothing.

| split        | utterances                                             | used by                             |
|--------------|--------------------------------------------------------|-------------------------------------|
| `train`      | speech with text                                       | units and all that follows          |
| `unlabelled` | speech alone                                           | units, stage 1                      |
| `voice`      | speech of the voice that answers, with or without text | units, vocoder, text to unit        |
| `test`       | held-out sentences                                     | evaluation                          |
| `test_voice` | held-out sentences in a voice that no training hears   | evaluation                          |
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from speechgpt_lib.errors import UserError

LEARNED = ("train", "unlabelled", "voice")  # the splits that any training may hear
HELD_OUT = ("test", "test_voice")


class Piece(NamedTuple):
    """A stretch of a document: how much its words count in the loss, and how much the last one (None: the same)."""

    text: str
    weight: float
    last: float | None = None


Document = tuple[Piece, ...]


@dataclass(frozen=True)
class Question:
    """A question with its one right answer, in the corpus' own spelling, and its kind."""

    text: str
    answer: str
    kind: str


class Judge(Protocol):
    """An independent listener: waves (samples,) at 16 kHz → what it hears."""

    def transcribe_many(self, waves: Sequence) -> list[str]:
        """The words of each wave."""


class Corpus(Protocol):
    """A corpus of the recipe."""

    name: str

    def build(self, folder: Path, seed: int) -> dict:
        """Write the utterance table into `folder` (what is there is kept); returns {speaking: voices that answer}."""

    def normalise(self, text: str) -> str:
        """A text in the corpus' own spelling, in which transcripts are compared."""

    def unknown_words(self, text: str) -> list[str]:
        """Words that this corpus never says; [] where its language is open."""

    def texts(self, seed: int) -> Iterator[str]:
        """Text for training a tokenizer."""

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """Text for training a language model; with `curriculum` only what is to be learned first."""

    def questions(self, rng: random.Random, count: int) -> list[Question]:
        """Written questions of the training side; [] where it has none."""

    def held_out_questions(self, per_kind: int) -> list[Question]:
        """Written questions that no training reads."""

    def judges(self) -> dict[str, Judge]:
        """Listeners that know this corpus' language, by the suffix of their figures; {} where there is none."""


@dataclass(frozen=True)
class Corpora:
    """All corpora of a recipe as one."""

    members: tuple[Corpus, ...]

    def normalise(self, text: str) -> str:
        """A text in the spelling of the first corpus."""
        return self.members[0].normalise(text)

    def unknown_words(self, text: str) -> list[str]:
        """Words that no corpus says."""
        unknown = [member.unknown_words(text) for member in self.members]
        return [word for word in unknown[0] if all(word in words for words in unknown)]

    def texts(self, seed: int) -> Iterator[str]:
        """Text of all corpora for training a tokenizer."""
        for member in self.members:
            yield from member.texts(seed)

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """`count` documents, from every corpus about as many."""
        if len(self.members) == 1:
            return self.members[0].documents(rng, count, curriculum)
        share = -(-count // len(self.members))
        found = [d for member in self.members for d in member.documents(rng, share, curriculum)]
        rng.shuffle(found)
        return found[:count]

    def questions(self, rng: random.Random, count: int) -> list[Question]:
        """Up to `count` written questions of the training side."""
        return next((q for m in self.members if (q := m.questions(rng, count))), [])

    def held_out_questions(self, per_kind: int) -> list[Question]:
        """Written questions that no training reads, of every corpus."""
        return [q for member in self.members for q in member.held_out_questions(per_kind)]

    def judges(self) -> dict[str, Judge]:
        """The judges of the first corpus, since it is its sentences that are spoken for them."""
        return self.members[0].judges()


def check_distinct(identities: Iterator[str]) -> int:
    """Count utterance ids; raises UserError at the first that occurs twice."""
    seen: set[str] = set()
    for identity in identities:
        if identity in seen:
            raise UserError(
                f"two corpora of the recipe have an utterance {identity!r}: name each corpus once, or other splits of it"
            )
        seen.add(identity)
    return len(seen)
