"""A finished run → its figures: word error rates, right answers, well-formed chains, each with n
and a bootstrap interval: {value, n, low, high}.

Sets are lists of `Item`: held-out utterances of the run's own corpus, or a folder written by
`speechgpt corpora sample`.

Transcripts and answers are compared after the same normalisation of both sides: numbers, money,
units and signs in words (`spoken_form.in_words`), British spelling as American (`one_spelling`),
then the spelling of the run's first corpus (small letters, no punctuation).  Where the language is
open, `asr_wer_whisper` counts as is usual there, by Whisper's normaliser.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from speechgpt_lib.corpora.audio import nothing_heard, read_audio, write_audio
from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.corpora.tables import hear, inside
from speechgpt_lib.dialogue.speechgpt import SpeechGPT
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.evaluation.judges import (
    OPEN,
    as_whisper_counts,
    comparable,
    figure_name,
    hearing,
    judges_if_installed,
)
from speechgpt_lib.evaluation.report import answer_gap
from speechgpt_lib.language_model.generation import Sampling
from speechgpt_lib.metrics import open_judge
from speechgpt_lib.metrics.unit_errors import bootstrap_mean, bootstrap_ratio, word_errors
from speechgpt_lib.runs.artefacts import read_text
from speechgpt_lib.runs.machine import usable_cores
from speechgpt_lib.runs.run import Run
from speechgpt_lib.runs.seeds import shuffled
from speechgpt_lib.units.extract import read_units

TEMPERATURE, SAMPLED = 0.7, 56  # the release's temperature, and the questions asked at it
COMPARED = (
    "both sides with numbers and signs in words, in American spelling and small letters, without "
    "punctuation"
)


@dataclass(frozen=True)
class Item:
    """One utterance to be scored: wave (samples,) at 16 kHz, what is said, and the right answer if
    it is a question."""

    wave: np.ndarray
    text: str
    answer: str
    kind: str
    voice: str
    rank: int = 0  # of its kind, in the order of the corpus


def word_error_rate(
    items: Sequence[Item],
    heard: Sequence[str],
    draws: int,
    corpora: Corpora,
    spelt: Callable[[str], str] | None = None,
) -> dict:
    """The pooled word error rate of what was heard, both sides `spelt`, or else `comparable`."""
    spelt = spelt or partial(comparable, corpora)
    texts = zip((item.text for item in items), heard, strict=True)
    pairs = [word_errors(*map(spelt, both)) for both in texts]
    errors, words = zip(*pairs, strict=True)
    if not any(words):
        raise UserError("no word in any transcript of the set: there is nothing to compare with")
    return asdict(bootstrap_ratio(errors, words, draws=draws))


def share(flags: Iterable[bool], draws: int) -> dict:
    """The share of true ones."""
    return asdict(bootstrap_mean(list(flags), draws=draws))


def evaluate_run(run: Run, folder: Path, say: Callable[[str], None] = print) -> dict:
    """Score a run on its own held-out speech; waves of the examples are written into `folder`.

    Returns {"figures", "cut", "qa_by_kind", "qa_baseline", "examples", "open_judge"}; `cut` counts
    answers that met their longest length, `open_judge` says which one listened, or why none did.
    What the corpora don't allow is left out: figures by a judge, or by questions.
    """
    settings, draws = run.recipe.evaluation, run.recipe.evaluation.bootstrap_draws
    speechgpt = SpeechGPT.load(run)
    corpora = speechgpt.corpora
    # All cores: a run ends with this step, and no word depends on them.
    judges = judges_if_installed(run.recipe, corpora, say, usable_cores())
    known, unknown_voice = held_out(run, "test"), held_out(run, "test_voice")
    voices = set(run.require("corpus").metrics["speaking"])
    own = [item for item in known if item.voice in voices] or known
    questions = balanced_questions(known, settings.questions_per_kind) if judges else []
    result: dict = {"qa_by_kind": {}, "qa_baseline": None, "examples": []}
    figures, answers, cut = {}, {}, {}

    with hearing(judges) as hears:
        if judges and known:
            longest = max(settings.tts_sentences, settings.resynthesis_utterances)
            hears.begin("", [item.wave for item in own[:longest]])

        say("listening: held-out sentences in known voices and in a voice never heard")
        for name, items in (("asr_wer", known), ("asr_wer_heldout_voice", unknown_voice)):
            if chosen := items[: settings.asr_utterances]:
                rates, cut[name] = transcription(name, chosen, speechgpt, run)
                figures |= rates

        if judges and known:
            say("speaking: held-out sentences, heard by judges beside recordings of the same")
            said = speechgpt.say_many([item.text for item in own[: settings.tts_sentences]])
            hears.begin("tts", [each.wave for each in said])
            again = own[: settings.resynthesis_utterances]
            hears.begin("resynthesis", [speechgpt.speak(speechgpt.units(i.wave)) for i in again])

        if questions:
            say("answering: spoken questions, every kind equally often")
            first = next(iter(judges.values()))
            answers, answered, waves = answer_questions(speechgpt, questions, first, draws)
            cut["qa"] = answered.pop("cut")
            result |= answered | {"qa_baseline": share(nearest_is_right(run, questions), draws)}
            shown = zip(questions[: settings.examples], waves, strict=False)
            for k, (question, wave) in enumerate(shown):
                write_audio(folder / f"example_{k:02d}_question.wav", question.wave)
                write_audio(folder / f"example_{k:02d}_answer.wav", wave)
        if judges and known:
            figures |= spoken_rates(own, hears.words(), draws, corpora)
    figures |= answers
    if quality := run.require("inventory").metrics.get("hubert"):
        count, pnmi = len({item.voice for item in known + unknown_voice}), quality["pnmi"]
        figures["pnmi"] = {"value": pnmi, "n": count, "low": pnmi, "high": pnmi}
    settings = run.recipe.evaluation.open_judge, run.recipe.data
    return {"figures": figures, "cut": cut, "open_judge": open_judge.describe(*settings)} | result


def transcription(
    name: str, items: Sequence[Item], speechgpt: SpeechGPT, run: Run
) -> tuple[dict[str, dict], int]:
    """The word error rate `name` of utterances as the run transcribes them, where the language is
    open also as Whisper counts; how many transcripts met their longest length."""
    heard = speechgpt.transcribe_many([item.wave for item in items])
    draws = run.recipe.evaluation.bootstrap_draws
    words = items, [written.text for written in heard], draws, speechgpt.corpora
    figures = {name: word_error_rate(*words)}
    if run.recipe.lab is None:
        figures[name.replace("wer", "wer_whisper")] = word_error_rate(*words, as_whisper_counts)
    return figures, sum(written.cut for written in heard)


def spoken_rates(
    items: Sequence[Item],
    heard: Mapping[tuple[str, str], Sequence[str]],
    draws: int,
    corpora: Corpora,
) -> dict[str, dict]:
    """Word error rates of waves that say the first sentences of `items`, one rate for each way of
    speaking and each judge, beside that of the recordings of the same sentences: the ceiling.

    heard: what was heard, by way of speaking ("": the recordings) and suffix of the judge.
    `judge_agreement` is the observed agreement of the open judge and the first one: the share of
    sentences in which both hear the same words, of those that the model said; its ceiling, of the
    recordings.
    """
    figures: dict[str, dict] = {}
    suffixes = dict.fromkeys(suffix for _, suffix in heard)
    for suffix in suffixes:
        for name in dict.fromkeys(way for way, _ in heard if way):
            count = len(heard[name, suffix])
            for way in (name, ""):
                key = figure_name(name, suffix, ceiling=not way)
                words = heard[way, suffix][:count]
                figures[key] = word_error_rate(items[:count], words, draws, corpora)
    first = next(iter(suffixes))
    if OPEN in suffixes and first != OPEN:
        for name, way in (("judge_agreement", "tts"), ("judge_agreement_ceiling", "")):
            pairs = zip(heard[way, first], heard[way, OPEN], strict=True)
            same = [comparable(corpora, a) == comparable(corpora, b) for a, b in pairs]
            figures[name] = share(same, draws)
    return figures


def evaluate_set(run: Run, folder: Path, voice: str | None = None) -> dict:
    """Score a run, perhaps adapted to a voice, on a folder with `items.jsonl` as `speechgpt corpora
    sample` writes it.

    A line has path and text; answer, kind, voice and seen where they are known.  Answers are left
    out where nothing judges them; `cut` counts what met its longest length, `nothing_heard` the
    sounds that hold nothing to hear: all their words count as missed, their answers as wrong.
    """
    draws = run.recipe.evaluation.bootstrap_draws
    items, records = read_items(folder)
    speechgpt = SpeechGPT.load(run, voice)
    written = speechgpt.transcribe_many([i.wave for i in items])
    heard, cut = [w.text for w in written], {"asr_wer": sum(w.cut for w in written)}
    words = items, heard, draws, speechgpt.corpora
    figures = {"asr_wer": word_error_rate(*words)}
    if run.recipe.lab is None:
        figures["asr_wer_whisper"] = word_error_rate(*words, as_whisper_counts)
    seen = sum(bool(r.get("seen")) for r in records)
    result: dict = {"run": str(run.path), "items": len(items), "seen_in_training": seen, "cut": cut}
    result["nothing_heard"] = sum(bool(w.nothing_heard) for w in written)
    questions = [i for i in items if i.answer]
    if questions and (judges := judges_if_installed(run.recipe, speechgpt.corpora, run.say)):
        first = next(iter(judges.values()))
        shares, answered, _ = answer_questions(speechgpt, questions, first, draws)
        figures |= shares
        cut["qa"] = answered.pop("cut")
        result |= answered
        figures |= answer_gap(answered["examples"], draws)
    transcripts = []
    for record, item, w in zip(records, items, written, strict=True):
        one = {"path": record["path"], "text": item.text, "heard": w.text}
        transcripts.append(one | {"nothing_heard": w.nothing_heard})
    return figures | result | {"compared": COMPARED, "transcripts": transcripts}


def answer_questions(
    speechgpt: SpeechGPT, questions: Sequence[Item], judge: Judge, draws: int
) -> tuple[dict[str, dict], dict, list[np.ndarray]]:
    """Ask every question twice, for a written and for a spoken answer, which the judge hears.

    Returns shares right and well-formed, {"qa_by_kind", "examples", "cut"}, and what was said:
    waves (samples,) at 16 kHz.
    """
    waves = [q.wave for q in questions]
    written, spoken = (speechgpt.ask_many(waves, reply=reply) for reply in ("text", "speech"))
    said = [np.zeros(1600, np.float32) if r.wave is None else r.wave for r in spoken]
    examples = []
    for q, reply, judged in zip(questions, written, judge.transcribe_many(said), strict=True):
        one = {"question": q.text, "heard": reply.question_text, "expected": q.answer}
        one |= {"answered": reply.answer_text, "judged": judged, "kind": q.kind, "voice": q.voice}
        texts = (q.answer, reply.answer_text, judged)
        right, *answers = (comparable(speechgpt.corpora, text) for text in texts)
        one |= dict(zip(("right_text", "right_speech"), (a == right for a in answers), strict=True))
        examples.append(one)
    figures = {
        "qa_text_accuracy": share((e["right_text"] for e in examples), draws),
        "qa_speech_accuracy": share((e["right_speech"] for e in examples), draws),
        "wellformed_share": share((r.wellformed for r in (*written, *spoken)), draws),
    }
    by_kind = {}
    for kind in dict.fromkeys(q.kind for q in questions):
        of = [e for e in examples if e["kind"] == kind]
        by_kind[kind] = {k: share((e[f"right_{k}"] for e in of), draws) for k in ("text", "speech")}
    figures["wellformed_share_temperature_0.7"] = sampled_form(speechgpt, waves, draws)
    cut = sum(r.cut for r in (*written, *spoken))
    return figures, {"qa_by_kind": by_kind, "examples": examples, "cut": cut}, said


def sampled_form(speechgpt: SpeechGPT, waves: Sequence[np.ndarray], draws: int) -> dict:
    """The share of well-formed chains, written and spoken, where tokens are drawn as the release
    draws them; the same draws each time."""
    waves = waves[:SAMPLED]
    asked = [speechgpt.units(wave) for wave in waves if not nothing_heard(wave)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        replies = [speechgpt.chains(asked, r, Sampling(TEMPERATURE)) for r in ("text", "speech")]
    formed = [chain.wellformed for chains in replies for chain in chains]
    return share(formed + [False] * 2 * (len(waves) - len(asked)), draws)


def balanced_questions(items: Sequence[Item], per_kind: int) -> list[Item]:
    """The same number of questions of every kind: `per_kind`, or as many as the rarest kind has."""
    kinds = sorted({i.kind: i.rank for i in items if i.answer}.items(), key=lambda pair: pair[1])
    of = [[i for i in items if i.answer and i.kind == kind] for kind, _ in kinds]
    return [item for group in list(zip(*of, strict=False))[:per_kind] for item in group]


def nearest_is_right(run: Run, questions: Sequence[Item]) -> list[bool]:
    """Would the answer to the most similar training question do?  Similarity is word edit distance
    of transcripts."""
    rows = read_units(run.require("units").path, None, {"split": "train"})
    known = {row.text: (row.text.split(), row.answer) for row in rows if row.answer}.values()
    right = []
    for question in questions:
        words = question.text.split()
        _, answer = min(known, key=lambda pair: Levenshtein.distance(words, pair[0]))
        right.append(answer == question.answer)
    return right


def read_items(folder: Path) -> tuple[list[Item], list[dict]]:
    """The utterances of `items.jsonl` in a folder, and its records as they stand."""
    path, how = Path(folder) / "items.jsonl", f"`speechgpt corpora sample -n 50 -o {folder}`"
    if not path.is_file():
        raise UserError(f"no items.jsonl in {folder}: make a set by {how}")
    items, records = [], []
    with reading(path, how):
        lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        expected = "expected an object with path and text"
        with reading(f"{path}, line {number}", expected, "can't be read"):
            record = json.loads(line)
            name, text = record["path"], record["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"found {str(name)[:40]!r} and {str(text)[:40]!r}")
            answer, kind, voice = (str(record.get(k) or "") for k in ("answer", "kind", "voice"))
            items.append(Item(read_audio(inside(path.parent, name)), text, answer, kind, voice))
        records.append(record)
    if not items:
        raise UserError(f"{path} is empty: make a set by {how}")
    return items, records


def held_out(run: Run, split: str) -> list[Item]:
    """The held-out utterances of a split ("test", "test_voice") with their sound, in a seeded
    order."""
    ranks: dict[str, int] = {}
    items = [
        Item(u.wave, u.text, u.answer, u.kind, u.voice, ranks.setdefault(u.kind, len(ranks)))
        for u in hear(run.require("corpus").path, {"split": split})
    ]
    return shuffled(items, run.recipe.seed)
