"""The independent judges of a recipe, or why there are none; how what they hear is compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch

from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics import open_judge
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.text_to_unit.spoken_form import in_words, one_spelling

OPEN = "_open"  # the suffix of figures by the judge that knows no grammar
Judges = Mapping[str, Judge]  # by the suffix of their figures


def judges_if_installed(
    recipe: Recipe, corpora: Corpora, say: Callable[[str], None], workers: int | None = None
) -> dict[str, Judge]:
    """Judges by the suffix of their figures: those that know the corpora's language ("" and
    "_bigram" in the lab), then the open one ("_open").  Says why one is missing.

    workers: how many waves the open one hears at once (default: torch's threads); all hear alike.
    """
    judges: dict[str, Judge] = {}
    try:
        judges |= corpora.judges()
    except UserError as error:
        say(f"no judge of the corpora: {error}")
    source = recipe.evaluation.open_judge
    if source != open_judge.NONE:
        try:
            workers = workers or torch.get_num_threads()
            judges[OPEN] = open_judge.open_judge(source, recipe.data, workers)
        except UserError as error:
            if source != open_judge.AUTO:
                raise
            say(str(error))
    if not judges:
        say("no word error rates of speech: nothing here judges it")
    return judges


def open_judge_settings(recipe: Recipe) -> dict:
    """What of the open judge makes a step's key: another judge hears other words."""
    return {"open_judge": open_judge.identity(recipe.evaluation.open_judge, recipe.data)}


def figure_name(kind: str, suffix: str, ceiling: bool = False) -> str:
    """Of a word error rate: tts_wer, tts_wer_ceiling; tts_wer_bigram, tts_wer_ceiling_bigram;
    tts_wer_open, tts_wer_open_ceiling."""
    parts = ("_ceiling" * ceiling, suffix)
    return f"{kind}_wer{''.join(parts[::-1] if suffix == OPEN else parts)}"


@functools.cache
def _whisper() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def as_whisper_counts(text: str) -> str:
    """A text as error rates of open English are usually compared: by Whisper's normaliser.

    It writes numbers in digits, contractions in full, and drops what hesitates.  transformers'
    copy, whose list of British spellings comes with a model: ours is applied before.
    """
    return _whisper()(one_spelling(text)).strip()


def comparable(corpora: Corpora, text: str) -> str:
    """A transcript, answer or reference as it is compared."""
    return corpora.normalise(one_spelling(in_words(text)))
