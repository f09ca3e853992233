"""Sentences for a learner to read: of the run's own training side, chosen so that words recur.

Held-out sentences are never among them, so that a figure on held-out sentences stays honest.  Each
next sentence is the one whose words, and pairs of neighbouring words, were asked for least so far,
for its length: with 40 sentences of the lab world nearly every one of its words is read.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import write_text
from speechgpt_lib.runs.run import Run

WORDS = (4, 16)  # of a sentence: shorter ones say little, longer ones are read with slips
CONSIDERED = 4000  # sentences, of which the prompts are chosen
PAIR, LENGTH = 0.3, 0.7  # what a new pair is worth beside a new word; how much length counts


def training_sentences(run: Run) -> list[str]:
    """The sentences of the run's corpus that training reads, sorted."""
    rows = read_utterances(run.require("corpus").path, where={"split": ["train"]})
    return sorted({u.text for u in rows if u.text})


def prompts(run: Run, count: int) -> list[str]:
    """`count` sentences to read, the same for every call; with more, the first ones stay."""
    low, high = WORDS
    texts = [t for t in training_sentences(run) if low <= len(t.split()) <= high]
    if not texts:
        raise UserError(f"{run.path} has no sentence of {low} to {high} words to read")
    random.Random(f"prompts {run.recipe.seed}").shuffle(texts)
    pieces = {text: _pieces(text) for text in texts[:CONSIDERED]}
    asked: Counter = Counter()
    chosen: list[str] = []

    def worth(text: str) -> float:
        new = ((1.0 if isinstance(p, str) else PAIR) / (1 + asked[p]) for p in pieces[text])
        return sum(new) / len(text.split()) ** LENGTH

    while pieces and len(chosen) < count:
        chosen.append(max(pieces, key=worth))
        asked.update(pieces.pop(chosen[-1]))
    return chosen


def _pieces(text: str) -> list[str | tuple[str, str]]:
    """Words, and pairs of neighbours, the sentence's ends included."""
    words = text.split()
    return [*words, *zip(["", *words], [*words, ""], strict=True)]


def write_prompts(path: Path, texts: list[str]) -> None:
    """A list to read from: the file's name for each sentence, a tab, the sentence.

    In the folder of the recordings it also says which sentence each of them is.
    """
    write_text(path, "".join(f"{k:04d}.wav\t{text}\n" for k, text in enumerate(texts)))
