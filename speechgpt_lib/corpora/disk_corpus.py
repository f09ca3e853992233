"""Recorded speech on a disk as a corpus of the recipe: its utterances, each in the split that the recipe's role gives it."""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from speechgpt_lib.corpora.corpus import Document, Judge, Piece, Question
from speechgpt_lib.corpora.held_out import is_held_out
from speechgpt_lib.corpora.prepare import READERS, Row, prepare
from speechgpt_lib.corpora.segments import Segment
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.recipes.sources import DiskCorpus

MOST_TEXTS = 100_000  # transcripts that documents are drawn from


@dataclass(frozen=True)
class DiskReader:
    """See `corpus.Corpus`.  `table` is the corpus' part of the utterance table, once there is one."""

    settings: DiskCorpus
    root: Path
    name: str
    table: Path | None = None
    say: Callable[[str], None] = print

    def build(self, folder: Path, seed: int) -> dict:
        """Look at every file and write which can be used, below `folder`; the sound stays where it is."""
        s = self.settings
        chosen = self._chosen(seed) if s.utterances else None
        prepare(
            s.reader,
            self.root,
            folder / self.name,
            s.splits,
            decode=s.decode,
            max_bad_share=s.max_bad_share,
            longest_s=s.longest_s,
            shard_size=1000,
            change=lambda row: self._placed(row, chosen),
            say=self.say,
            **s.options,
        )
        if "voice" not in s.role:
            return {"speaking": []}
        where = {"split": ["train", "voice"]}
        return {
            "speaking": sorted({u.voice for u in read_utterances(folder / self.name, where=where)})
        }

    def normalise(self, text: str) -> str:
        """Small letters, single spaces, no signs but apostrophes within words."""
        return " ".join(re.findall(r"\w+(?:'\w+)*", text.lower()))

    def unknown_words(self, text: str) -> list[str]:
        """None: the language of recordings is open."""
        return []

    def texts(self, seed: int) -> Iterator[str]:
        """The transcripts of the training side."""
        return iter(self._transcripts)

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """Transcripts, drawn at random; none where there is no text."""
        if not self._transcripts:
            return []
        return [(Piece(rng.choice(self._transcripts), 1.0),) for _ in range(count)]

    def questions(self, rng: random.Random, count: int) -> list[Question]:
        """None: recordings come without answers."""
        return []

    def held_out_questions(self, per_kind: int) -> list[Question]:
        """None: recordings come without answers."""
        return []

    def judges(self) -> dict[str, Judge]:
        """None: a judge of open speech is no part of this corpus."""
        return {}

    @functools.cached_property
    def _transcripts(self) -> tuple[str, ...]:
        where = {"split": ["train", "voice"]}
        texts = (u.text for u in read_utterances(self.table, where=where) if u.text)
        return tuple(heapq.nsmallest(MOST_TEXTS, dict.fromkeys(texts), key=_rank))

    def _chosen(self, seed: int) -> set[str]:
        rows = READERS[self.settings.reader](
            self.root, self.settings.splits, **self.settings.options
        )
        identities = (row.id for row in rows if isinstance(row, Segment))
        ranked = heapq.nsmallest(
            self.settings.utterances, identities, key=lambda i: _rank(f"{seed} {i}")
        )
        return set(ranked)

    def _placed(self, row: Row, chosen: set[str] | None) -> Row | None:
        """The row in its split of the recipe, with its text as this corpus spells it."""
        if chosen is not None and row.id not in chosen:
            return None
        if not isinstance(row, Segment):
            return row
        text = None if row.text is None or self._split == "unlabelled" else self.normalise(row.text)
        held_out = self.settings.held_out and is_held_out(text or row.id, self.settings.held_out)
        return replace(row, text=text, split="test" if held_out else self._split)

    @property
    def _split(self) -> str:
        if "aligned" in self.settings.role:
            return "train"
        return self.settings.role[0]


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
