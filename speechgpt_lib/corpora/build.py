"""The corpora of a recipe → one utterance table; and opened for what else steps ask of them."""

from __future__ import annotations

import functools
import heapq
import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import category

import numpy as np

from speechgpt_lib.corpora.corpus import HELD_OUT, LEARNED, Corpora, Corpus, Document, Piece, plain
from speechgpt_lib.corpora.held_out import is_held_out
from speechgpt_lib.corpora.lab import LabReader
from speechgpt_lib.corpora.prepare import prepare, read_rows
from speechgpt_lib.corpora.tables import Row, Skipped, Utterance, read_utterances, table_shards
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import DiskCorpus, LabCorpus
from speechgpt_lib.runs.artefacts import remove_half_written
from speechgpt_lib.runs.seeds import rank
from speechgpt_lib.runs.stores import located

MOST_TEXTS = 100_000  # transcripts that documents are drawn from
WITH_TEXT = ("train", "voice")


def open_corpora(recipe: Recipe, table: Path | None = None, say: Callable = print) -> Corpora:
    """The corpora of a recipe; `table`: their utterance table, where those on disk find text."""
    members: list[Corpus] = []
    for number, settings in enumerate(recipe.corpora):
        if isinstance(settings, LabCorpus):
            members.append(LabReader(settings))
            continue
        root = located(settings.root, recipe.data)
        name = f"{settings.reader}-{number}"
        members.append(DiskReader(settings, root, name, table and table / name, say))
    if len({member.name for member in members}) < len(members):
        raise UserError("the recipe has two corpora with reader lab: put all voices into one")
    return Corpora(tuple(members))


def build_table(recipe: Recipe, folder: Path, say: Callable = print) -> dict:
    """Write the utterance table of all corpora into `folder`.

    Returns counts of utterances by split, hours, voices, and the voices that answer.
    Raises UserError: an utterance id that occurs twice, no speech to learn from, none held out.
    """
    splits, seconds, roles = Counter(), 0.0, set()
    hashes = array("q")  # of the ids: eight bytes each, so that tables of any length can be checked
    for corpus in open_corpora(recipe, say=say).members:
        for u in read_utterances(folder, shards=corpus.build(folder, recipe.seed)):
            hashes.append(hash(u.id))
            splits[u.split] += 1
            seconds += u.seconds
            roles.add((u.voice, u.split == "train", corpus.answers(u)))
    remove_half_written(folder)
    ordered = np.sort(hashes)
    if suspects := set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()):
        ids = Counter(u.id for u in read_utterances(folder) if hash(u.id) in suspects)
        (twice, times), *_ = ids.most_common(1)
        if times > 1:
            cure = "name each corpus once, or other splits of it"
            raise UserError(f"two corpora of the recipe have an utterance {twice!r}: {cure}")
    lacking = "no corpus of the recipe has"
    if not any(map(splits.get, LEARNED)):
        raise UserError(f"{lacking} speech to learn from: give one the role aligned")
    if not any(map(splits.get, HELD_OUT)):
        cure = "give one `role: test`, or the aligned one `held_out: 0.05`"
        raise UserError(f"{lacking} held-out speech to measure on: {cure}")
    found = {"utterances": len(hashes), "hours": round(seconds / 3600, 3)}
    speaking = {v for v, _, answers in roles if answers} or {v for v, train, _ in roles if train}
    found |= {"voices": sorted({v for v, _, _ in roles}), "speaking": sorted(speaking)}
    return found | {name: splits[name] for name in (*LEARNED, *HELD_OUT)}


@dataclass(frozen=True)
class DiskReader(Corpus):
    """See `corpus.Corpus`.  `table` is this corpus' part of the utterance table, once written."""

    settings: DiskCorpus
    root: Path
    name: str
    table: Path | None = None
    say: Callable[[str], None] = print

    def build(self, folder: Path, seed: int) -> list[Path]:
        """Look at every file and write which can be used to `folder/name`; the sound stays."""
        s, chosen = self.settings, None
        if s.utterances:  # those with the smallest hashes, whatever the order of the lists
            rows = read_rows(s.reader, self.root, s.splits, s.options)
            ids = (row.id for row in rows if isinstance(row, Utterance))
            chosen = set(heapq.nsmallest(s.utterances, ids, key=lambda i: rank(i, seed)))
        out, place = folder / self.name, functools.partial(self._placed, chosen)
        options = s.model_dump(include={"decode", "max_bad_share", "longest_s"}) | s.options
        options |= {"shard_size": 1000, "change": place, "say": self.say}
        prepare(s.reader, self.root, out, s.splits, **options)
        return table_shards(out)

    def answers(self, utterance: Utterance) -> bool:
        """With the role `voice`, all that train."""
        return "voice" in self.settings.role and utterance.split in WITH_TEXT

    def normalise(self, text: str) -> str:
        """Small letters, single spaces, no signs but apostrophes within words."""
        kept = (c if category(c)[0] in "LMN" or c == "'" else " " for c in plain(text).lower())
        return " ".join(re.findall(r"[^\s']+(?:'[^\s']+)*", "".join(kept)))

    def texts(self, seed: int) -> Iterator[str]:
        """The transcripts of the training side."""
        return iter(self._transcripts)

    def documents(self, rng: random.Random, count: int, curriculum: bool = False) -> list[Document]:
        """Transcripts, drawn at random; none where there is no text."""
        texts = self._transcripts
        return [(Piece(rng.choice(texts), 1.0),) for _ in range(count if texts else 0)]

    @functools.cached_property
    def _transcripts(self) -> tuple[str, ...]:
        spoken = read_utterances(self.table, where={"split": WITH_TEXT})
        texts = dict.fromkeys(u.text for u in spoken if u.text)
        return tuple(heapq.nsmallest(MOST_TEXTS, texts, key=rank))

    def _placed(self, chosen: set[str] | None, row: Row) -> Row | None:
        """The row in its split of the recipe, with its text as this corpus spells it."""
        if chosen is not None and row.id not in chosen:
            return None
        if isinstance(row, Skipped):
            return row
        role = self.settings.role
        split = next(name for name in ("aligned", "voice", "unlabelled", "test") if name in role)
        split = "train" if split == "aligned" else split
        text = self.normalise(row.text) if split != "unlabelled" else ""
        if text and is_held_out(text, self.settings.held_out):
            split = "test"
        if not text and split == "test":  # nothing to measure with
            return None
        if not text and split == "train":
            split = "voice" if "voice" in role else "unlabelled"
        return replace(row, text=text, split=split)
