"""One interface to every corpus: what a step may ask of it, whatever it is and wherever it lies.

No step asks which corpus it has: it reads the utterance table that `build` wrote, and asks for
text, questions or a judge; a corpus that has none answers with nothing.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.metrics.judge import Judge

# The splits that training may hear: speech with text, speech alone, and the voice that answers;
# and those for evaluation only, the second in a voice that training misses.
LEARNED, HELD_OUT = ("train", "unlabelled", "voice"), ("test", "test_voice")
_SAME = str.maketrans(dict.fromkeys("’‘`ʼ´", "'") | {"№": "No. "})


def plain(text: str) -> str:
    """Compatible forms of letters (NFKC) and straight apostrophes; 10² is 10^2, and 2½ is 2 1/2."""
    text = re.sub("[⁰¹²³⁴-⁹]+", r"^\g<0>", re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text))
    return unicodedata.normalize("NFKC", text.translate(_SAME)).replace("⁄", "/")


class Piece(NamedTuple):
    """A stretch of a document, with the weight of its words in the loss."""

    text: str
    weight: float
    last: float | None = None  # weight of its last word; None: the same


Document = tuple[Piece, ...]


class Question(NamedTuple):
    """A question with its one right answer, in the corpus' own spelling, and its kind."""

    text: str
    answer: str
    kind: str


class Corpus:
    """A corpus of the recipe; to the last five, one may have nothing to say."""

    name: str

    def build(self, folder: Path, seed: int) -> list[Path]:
        """Write its part of the utterance table into `folder`, keep what is there; its shards."""

    def answers(self, utterance: Utterance) -> bool:
        """Whether this is the voice that is to answer."""

    def normalise(self, text: str) -> str:
        """A text in the corpus' own spelling, in which transcripts are compared."""

    def texts(self, seed: int) -> Iterator[str]:
        """Text for training a tokenizer."""

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """Text for a language model; with `curriculum` only what is to be learned first."""

    def unknown_words(self, text: str) -> list[str]:
        """Words that this corpus never says; none where its language is open."""
        return []

    def questions(self, rng: random.Random, count: int) -> list[Question]:
        """Written questions of the training side."""
        return []

    def held_out_questions(self, per_kind: int) -> list[Question]:
        """Written questions that no training reads."""
        return []

    def judges(self) -> dict[str, Judge]:
        """Listeners that know this corpus' language, by the suffix of their figures."""
        return {}

    def speak(self, texts: list[str]) -> list[np.ndarray]:
        """Texts in the voice that answers, waves (samples,) at 16 kHz; [] where nothing speaks."""
        return []


class Corpora(NamedTuple):
    """All corpora of a recipe as one."""

    members: tuple[Corpus, ...]

    def normalise(self, text: str) -> str:
        """A text in the spelling of the first corpus."""
        return self.members[0].normalise(text)

    def unknown_words(self, text: str) -> list[str]:
        """Words that no corpus says."""
        first, *others = (member.unknown_words(text) for member in self.members)
        return [word for word in first if all(word in unknown for unknown in others)]

    def texts(self, seed: int) -> Iterator[str]:
        """Text of all corpora for training a tokenizer."""
        for member in self.members:
            yield from member.texts(seed)

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """`count` documents, about as many from every corpus that has text."""
        if len(self.members) == 1:
            return self.members[0].documents(rng, count, curriculum)
        found, members = [], list(self.members)
        while members and len(found) < count:
            share = -(-(count - len(found)) // len(members))
            parts = [member.documents(rng, share, curriculum) for member in members]
            members = [member for member, part in zip(members, parts, strict=True) if part]
            found += [document for part in parts for document in part]
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

    def speak(self, texts: list[str]) -> list[np.ndarray]:
        """Texts spoken by the first corpus, or []."""
        return self.members[0].speak(texts)
