"""The independent judges of a recipe, or why there are none; how what they hear is compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np
import torch

from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics import open_judge
from speechgpt_lib.metrics.judge import hear, keep
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.text_to_unit.spoken_form import in_words, one_spelling

OPEN = "_open"  # the suffix of figures by the judge that knows no grammar
FEW = 20  # waves that are heard sooner than another process begins
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


class Hearing:
    """What judges hear of several ways to say the same, by way and suffix.

    Judges take three quarters of an evaluation's time.  What they are to hear is begun here and
    heard while the caller computes on: by Whisper in threads, since it needs no turn of Python's;
    by the others in a process of their own.
    """

    def __init__(self, judges: Judges, threads: Executor, process: Executor):
        self.judges, self.threads, self.process = judges, threads, process
        self.begun: dict[tuple[str, str], Iterable[str]] = {}

    def begin(self, way: str, waves: Sequence[np.ndarray]) -> None:
        """Let all judges hear what one way of speaking says: waves (samples,) at 16 kHz."""
        for suffix, judge in self.judges.items():
            if suffix == OPEN:
                heard = self.threads.map(judge.transcribe, waves)
            elif len(waves) < FEW:
                heard = judge.transcribe_many(waves)
            else:
                heard = self.process.map(hear, [suffix] * len(waves), waves)
            self.begun[way, suffix] = heard

    def words(self) -> dict[tuple[str, str], list[str]]:
        """All that they heard, once they have."""
        self.begun |= {key: list(heard) for key, heard in self.begun.items()}
        return dict(self.begun)


@contextmanager
def hearing(judges: Judges) -> Iterator[Hearing]:
    """Inside the block judges hear; where it ends early, what is not begun stays unheard.

    Raises UserError where the process in which they hear was lost, whenever that is noticed.
    """
    threads = ThreadPoolExecutor(getattr(judges.get(OPEN), "workers", 1))
    closed = {suffix: judge for suffix, judge in judges.items() if suffix != OPEN}
    new = {"mp_context": get_context("spawn"), "initializer": keep, "initargs": (closed,)}
    process = ProcessPoolExecutor(1, **new)  # begins when it is first wanted
    try:
        yield Hearing(judges, threads, process)
    except BrokenProcessPool:
        what = "the process in which judges hear was lost (most often because memory ran out)"
        raise UserError(f"{what}: give the same command again") from None
    finally:
        for pool in (threads, process):
            pool.shutdown(cancel_futures=True)


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
