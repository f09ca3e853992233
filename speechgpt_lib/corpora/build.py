"""The corpora of a recipe → one utterance table, and the corpora themselves, opened for what else steps ask of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from speechgpt_lib.corpora.corpus import HELD_OUT, LEARNED, Corpora, Corpus, check_distinct
from speechgpt_lib.corpora.disk_corpus import DiskReader
from speechgpt_lib.corpora.lab_corpus import LabReader
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import LabCorpus


def open_corpora(
    recipe: Recipe, table: Path | None = None, say: Callable[[str], None] = print
) -> Corpora:
    """The corpora of a recipe; `table` is their utterance table, which those on a disk need to know their text."""
    members: list[Corpus] = []
    for number, settings in enumerate(recipe.corpora):
        if isinstance(settings, LabCorpus):
            members.append(LabReader(settings))
            continue
        root = Path(recipe.data).expanduser() / Path(settings.root).expanduser()
        name = f"{settings.reader}-{number}"
        members.append(DiskReader(settings, root, name, table and table / name, say))
    return Corpora(tuple(members))


def build_table(recipe: Recipe, folder: Path, say: Callable[[str], None] = print) -> dict:
    """Write the utterance table of all corpora into `folder`; returns counts, voices, and the voices that answer.

    Raises:
        UserError: an utterance id that occurs twice, no speech to learn from, or none that is held out.
    """
    speaking: set[str] = set()
    for corpus in open_corpora(recipe, say=say).members:
        speaking |= set(corpus.build(folder, recipe.seed)["speaking"])
    splits, voices, seconds = Counter(), set(), 0.0
    aligned: set[str] = set()
    total = check_distinct(u.id for u in read_utterances(folder))
    for u in read_utterances(folder):
        splits[u.split] += 1
        seconds += u.seconds
        voices.add(u.voice)
        aligned |= {u.voice} if u.split == "train" else set()
    if not any(splits[name] for name in LEARNED):
        raise UserError(
            "no corpus of the recipe has speech to learn from: give one the role aligned"
        )
    if not any(splits[name] for name in HELD_OUT):
        cure = "give one `role: test`, or the aligned one `held_out: 0.05`"
        raise UserError(f"no corpus of the recipe has held-out speech to measure on: {cure}")
    counts = {name: splits[name] for name in (*LEARNED, *HELD_OUT)}
    found = {"utterances": total, "hours": round(seconds / 3600, 3), "voices": sorted(voices)}
    return found | {"speaking": sorted(speaking or aligned)} | counts
