"""A finished run → its figures: word error rates, right answers, well-formed chains, each with n
and a bootstrap interval.

Sets are lists of `Item`: held-out utterances of the run's own corpus, or a folder written by
`speechgpt corpora sample`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.corpora.corpus import Judge
from speechgpt_lib.corpora.tables import hear
from speechgpt_lib.dialogue.speechgpt import Reply, SpeechGPT
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.judges import judges_if_installed
from speechgpt_lib.metrics.intervals import Estimate, bootstrap_mean, bootstrap_ratio
from speechgpt_lib.metrics.wer import word_errors
from speechgpt_lib.recipes.schema import EvaluationSettings
from speechgpt_lib.runs.run import Run
from speechgpt_lib.runs.seeds import shuffled
from speechgpt_lib.units.extract import read_units


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


@dataclass(frozen=True)
class Example:
    """A scored question to show in the report and to listen to."""

    question: str
    heard: str
    expected: str
    answered: str
    judged: str
    kind: str
    voice: str
    right_text: bool
    right_speech: bool


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str], draws: int) -> Estimate:
    pairs = [word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    errors, words = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    return bootstrap_ratio(errors, words, draws=draws)


def evaluate_run(run: Run, folder: Path, say: Callable[[str], None] = print) -> dict:
    """Score a run on its own held-out speech; waves of the examples are written into `folder`.

    Returns {"figures": name → Estimate as dict, "qa_by_kind", "qa_baseline", "examples"}.  What the
    corpora don't allow is left out: figures by a judge, or by questions.
    """
    settings, corpus = run.recipe.evaluation, run.require("corpus")
    draws = settings.bootstrap_draws
    speechgpt = SpeechGPT.load(run)
    judges = judges_if_installed(speechgpt.corpora, say)
    known, unknown_voice = held_out(run, "test"), held_out(run, "test_voice")
    figures: dict[str, Estimate] = {}
    cut: dict[str, int] = {}  # answers that met their longest length

    say("listening: held-out sentences in known voices and in a voice never heard")
    for name, items in (("asr_wer", known), ("asr_wer_heldout_voice", unknown_voice)):
        if chosen := items[: settings.asr_utterances]:
            heard = speechgpt.transcribe_many([i.wave for i in chosen])
            texts = [written.text for written in heard]
            figures[name] = word_error_rate([i.text for i in chosen], texts, draws)
            cut[name] = sum(written.cut for written in heard)

    if judges and known:
        say("speaking: held-out sentences, heard by judges beside recordings of the same sentences")
        voices = set(corpus.metrics["speaking"])
        own = [item for item in known if item.voice in voices] or known
        figures |= _spoken_figures(speechgpt, own, judges, settings)

    result: dict = {"qa_by_kind": {}, "qa_baseline": None, "examples": []}
    questions = balanced_questions(known, settings.questions_per_kind)
    if questions and judges:
        say("answering: spoken questions, every kind equally often")
        answers = answer_questions(speechgpt, questions, judges[""])
        baseline = nearest_question_baseline(run, questions)
        figures |= answers.figures(draws)
        shown = zip(questions[: settings.examples], answers.waves, strict=False)
        for k, (question, wave) in enumerate(shown):
            write_audio(folder / f"example_{k:02d}_question.wav", question.wave)
            write_audio(folder / f"example_{k:02d}_answer.wav", wave)
        cut["qa"] = answers.cut
        result["qa_by_kind"] = answers.by_kind(draws)
        result["qa_baseline"] = asdict(bootstrap_mean([float(b) for b in baseline], draws=draws))
        result["examples"] = [asdict(example) for example in answers.examples]
    if quality := run.require("inventory").metrics.get("hubert"):
        count = len({item.voice for item in known + unknown_voice})
        figures["pnmi"] = Estimate(quality["pnmi"], count, quality["pnmi"], quality["pnmi"])
    return {"figures": {name: asdict(e) for name, e in figures.items()}, "cut": cut} | result


def _spoken_figures(
    speechgpt: SpeechGPT,
    own: Sequence[Item],
    judges: dict[str, Judge],
    settings: EvaluationSettings,
) -> dict[str, Estimate]:
    """What judges hear of spoken sentences and of resynthesised ones, each beside the recordings
    (its ceiling)."""
    sentences = own[: settings.tts_sentences]
    spoken = [said.wave for said in speechgpt.say_many([i.text for i in sentences])]
    resynthesis = own[: settings.resynthesis_utterances]
    again = [speechgpt.speak(speechgpt.units(i.wave)) for i in resynthesis]
    figures = {}
    for name, waves, items in (
        ("tts_wer", spoken, sentences),
        ("tts_wer_ceiling", [i.wave for i in sentences], sentences),
        ("resynthesis_wer", again, resynthesis),
        ("resynthesis_wer_ceiling", [i.wave for i in resynthesis], resynthesis),
    ):
        for suffix, judge in judges.items():
            texts, heard = [i.text for i in items], judge.transcribe_many(waves)
            figures[name + suffix] = word_error_rate(texts, heard, settings.bootstrap_draws)
    return figures


def evaluate_set(run: Run, folder: Path) -> dict:
    """Score a run on a folder with `items.jsonl` as `speechgpt corpora sample` writes it.

    A line has path and text; answer, kind, voice and seen where they are known.  Answers are left
    out where nothing judges them; `cut` counts what met its longest length.
    """
    draws = run.recipe.evaluation.bootstrap_draws
    items, records = read_items(folder)
    speechgpt = SpeechGPT.load(run)
    written = speechgpt.transcribe_many([i.wave for i in items])
    heard, cut = [w.text for w in written], {"asr_wer": sum(w.cut for w in written)}
    figures = {"asr_wer": word_error_rate([i.text for i in items], heard, draws)}
    seen = sum(bool(r.get("seen")) for r in records)
    result: dict = {"run": str(run.path), "items": len(items), "seen_in_training": seen, "cut": cut}
    questions = [i for i in items if i.answer]
    if questions and (judges := judges_if_installed(speechgpt.corpora, run.say)):
        answers = answer_questions(speechgpt, questions, judges[""])
        figures |= answers.figures(draws)
        cut["qa"] = answers.cut
        examples = [asdict(e) for e in answers.examples]
        result |= {"qa_by_kind": answers.by_kind(draws), "examples": examples}
    pairs = zip(records, items, heard, strict=True)
    transcripts = [{"path": r["path"], "text": i.text, "heard": h} for r, i, h in pairs]
    return {name: asdict(e) for name, e in figures.items()} | result | {"transcripts": transcripts}


@dataclass(frozen=True)
class Answers:
    """Questions with their answers as scored: `replies` are spoken ones, `examples` one a question,
    `waves` what was said."""

    examples: list[Example]
    waves: list[np.ndarray]
    wellformed: list[bool]
    cut: int = 0

    def figures(self, draws: int) -> dict[str, Estimate]:
        return {
            "qa_text_accuracy": bootstrap_mean(
                [float(e.right_text) for e in self.examples], draws=draws
            ),
            "qa_speech_accuracy": bootstrap_mean(
                [float(e.right_speech) for e in self.examples], draws=draws
            ),
            "wellformed_share": bootstrap_mean([float(w) for w in self.wellformed], draws=draws),
        }

    def by_kind(self, draws: int) -> dict[str, dict]:
        """Shares right in text and in speech, by kind of question."""
        found = {}
        for kind in dict.fromkeys(e.kind for e in self.examples):
            group = [e for e in self.examples if e.kind == kind]
            written = bootstrap_mean([float(e.right_text) for e in group], draws=draws)
            spoken = bootstrap_mean([float(e.right_speech) for e in group], draws=draws)
            found[kind] = {"text": asdict(written), "speech": asdict(spoken)}
        return found


def answer_questions(speechgpt: SpeechGPT, questions: Sequence[Item], judge: Judge) -> Answers:
    """Ask every question twice, for a written and for a spoken answer; the judge listens to the
    spoken ones."""
    waves = [q.wave for q in questions]
    written: list[Reply] = speechgpt.ask_many(waves, reply="text")
    spoken: list[Reply] = speechgpt.ask_many(waves, reply="speech")
    said = [
        reply.wave if reply.wave is not None else np.zeros(1600, np.float32) for reply in spoken
    ]
    judged = judge.transcribe_many(said)
    examples = [
        Example(
            q.text,
            w.question_text,
            q.answer,
            w.answer_text,
            j,
            q.kind,
            q.voice,
            w.answer_text == q.answer,
            j == q.answer,
        )
        for q, w, j in zip(questions, written, judged, strict=True)
    ]
    replies = (*written, *spoken)
    whole, cut = [r.wellformed for r in replies], sum(r.cut for r in replies)
    return Answers(examples, said, whole, cut)


def balanced_questions(items: Sequence[Item], per_kind: int) -> list[Item]:
    """The same number of questions of every kind: `per_kind`, or as many as the rarest kind has."""
    kinds = sorted({i.kind: i.rank for i in items if i.answer}.items(), key=lambda pair: pair[1])
    of = [[i for i in items if i.answer and i.kind == kind] for kind, _ in kinds]
    count = min([per_kind, *map(len, of)]) if of else 0
    return [group[k] for k in range(count) for group in of]


def nearest_question_baseline(run: Run, questions: Sequence[Item]) -> list[bool]:
    """Would the answer to the most similar training question do?  Similarity is word edit distance
    of transcripts."""
    rows = read_units(run.require("units").path, None, {"split": "train"})
    train = {row.text: row.answer for row in rows if row.answer}
    texts = [(text.split(), answer) for text, answer in train.items()]
    right = []
    for question in questions:
        words = question.text.split()
        nearest = min(texts, key=lambda known: Levenshtein.distance(words, known[0]))
        right.append(nearest[1] == question.answer)
    return right


def read_items(folder: Path) -> tuple[list[Item], list[dict]]:
    path = Path(folder) / "items.jsonl"
    if not path.is_file():
        raise UserError(
            f"no items.jsonl in {folder}: make a set by `speechgpt corpora sample -o {folder}`"
        )
    items, records = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            name, text = record["path"], record["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: expected an object with path and text ({error})"
            ) from None
        wave = read_audio(Path(folder) / name)
        items.append(
            Item(
                wave,
                text,
                record.get("answer") or "",
                record.get("kind", ""),
                record.get("voice", ""),
            )
        )
        records.append(record)
    if not items:
        raise UserError(
            f"{path} is empty: make a set with `speechgpt corpora sample -n 50 -o {folder}`"
        )
    return items, records


def held_out(run: Run, split: str) -> list[Item]:
    """The held-out utterances of a split ("test", "test_voice") with their sound, in a seeded
    order."""
    rows = hear(run.require("corpus").path, {"split": split})
    ranks: dict[str, int] = {}
    items = []
    for u in rows:
        rank = ranks.setdefault(u.kind, len(ranks))
        items.append(Item(u.wave, u.text, u.answer, u.kind, u.voice, rank))
    return shuffled(items, run.recipe.seed)
