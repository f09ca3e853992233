"""The corpora of a recipe → one utterance table; and opened for what else steps ask of them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.corpus import HELD_OUT, LEARNED, Corpora, Corpus
from speechgpt_lib.corpora.disk_corpus import DiskReader
from speechgpt_lib.corpora.lab import LabReader
from speechgpt_lib.corpora.tables import read_utterances, remove_half_written
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import LabCorpus

Say = Callable[[str], None]


def open_corpora(recipe: Recipe, table: Path | None = None, say: Say = print) -> Corpora:
    """The corpora of a recipe; `table`: their utterance table, where those on disk find text."""
    members: list[Corpus] = []
    for number, settings in enumerate(recipe.corpora):
        if isinstance(settings, LabCorpus):
            members.append(LabReader(settings))
            continue
        root = Path(recipe.data).expanduser() / Path(settings.root).expanduser()
        name = f"{settings.reader}-{number}"
        members.append(DiskReader(settings, root, name, table and table / name, say))
    if len({member.name for member in members}) < len(members):
        raise UserError("the recipe has two corpora with reader lab: put all voices into one")
    return Corpora(tuple(members))


def build_table(recipe: Recipe, folder: Path, say: Say = print) -> dict:
    """Write the utterance table of all corpora into `folder`.

    Returns counts of utterances by split, hours, voices, and the voices that answer.
    Raises UserError: an utterance id that occurs twice, no speech to learn from, none held out.
    """
    splits, seconds = Counter(), 0.0
    voices, aligned, speaking = set(), set(), set()
    hashes = array("q")  # of the ids: eight bytes each, so that tables of any length can be checked
    for corpus in open_corpora(recipe, say=say).members:
        for u in read_utterances(folder, shards=corpus.build(folder, recipe.seed)):
            hashes.append(hash(u.id))
            splits[u.split] += 1
            seconds += u.seconds
            voices.add(u.voice)
            aligned |= {u.voice} if u.split == "train" else set()
            speaking |= {u.voice} if corpus.answers(u) else set()
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
    found |= {"voices": sorted(voices), "speaking": sorted(speaking or aligned)}
    return found | {name: splits[name] for name in (*LEARNED, *HELD_OUT)}
