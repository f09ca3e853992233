"""A finished run → its figures: word error rates, right answers, well-formed chains, each with n and a bootstrap interval.

Sets are lists of `Item`: held-out utterances of the run's own corpus, or a folder written by `speechgpt corpora sample`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from speechgpt_lib import pipeline
from speechgpt_lib.corpora import world
from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.dialogue.speechgpt import Reply, SpeechGPT
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.judges import lab_judges
from speechgpt_lib.metrics.intervals import Estimate, bootstrap_mean, bootstrap_ratio
from speechgpt_lib.metrics.judge import SpeechJudge
from speechgpt_lib.metrics.wer import word_errors
from speechgpt_lib.runs.run import Run
from speechgpt_lib.runs.seeds import shuffled
from speechgpt_lib.units.extract import read_units

EXAMPLES = 14  # questions whose sound is kept beside the report


@dataclass(frozen=True)
class Item:
    """One utterance to be scored: wave (samples,) at 16 kHz, what is said, and the right answer if it is a question."""

    wave: np.ndarray
    text: str
    answer: str
    kind: str
    voice: str


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


def evaluate_run(run: Run, folder: Path, say=print) -> dict:
    """Score a run on its own held-out speech; waves of the examples are written into `folder`.

    Returns {"figures": name → Estimate as dict, "qa_by_kind", "qa_baseline", "examples"}.
    """
    settings, target = run.recipe.evaluation, run.recipe.corpus.target_voice
    draws = settings.bootstrap_draws
    speechgpt = SpeechGPT.load(run)
    template, bigram = lab_judges()
    known, unknown_voice = _held_out(run, "test"), _held_out(run, "test_voice")
    figures: dict[str, Estimate] = {}

    say("listening: held-out sentences in known voices and in a voice never heard")
    for name, items in (("asr_wer", known), ("asr_wer_heldout_voice", unknown_voice)):
        chosen = items[: settings.asr_utterances]
        figures[name] = word_error_rate(
            [i.text for i in chosen], speechgpt.transcribe([i.wave for i in chosen]), draws
        )

    say(
        "speaking: held-out sentences, heard by the independent judges beside recordings of the same sentences"
    )
    own = [item for item in known if item.voice == target]
    sentences = own[: settings.tts_sentences]
    spoken = [wave for _, wave in speechgpt.say_many([i.text for i in sentences])]
    resynthesis = own[: settings.resynthesis_utterances]
    again = [speechgpt.speak(speechgpt.units(i.wave)) for i in resynthesis]
    for name, waves, items in (
        ("tts_wer", spoken, sentences),
        ("tts_wer_ceiling", [i.wave for i in sentences], sentences),
        ("resynthesis_wer", again, resynthesis),
        ("resynthesis_wer_ceiling", [i.wave for i in resynthesis], resynthesis),
    ):
        for suffix, judge in (("", template), ("_bigram", bigram)):
            heard = judge.transcribe_many(waves)
            figures[name + suffix] = word_error_rate([i.text for i in items], heard, draws)

    say("answering: spoken questions, every kind equally often")
    questions = balanced_questions(known, settings.questions_per_kind)
    answers = answer_questions(speechgpt, questions, template)
    baseline = nearest_question_baseline(run, questions)
    figures |= answers.figures(draws)
    for k, (question, wave) in enumerate(zip(questions[:EXAMPLES], answers.waves, strict=False)):
        write_audio(folder / f"example_{k:02d}_question.wav", question.wave)
        write_audio(folder / f"example_{k:02d}_answer.wav", wave)
    quality = run.require(pipeline.INVENTORY).metrics["hubert"]
    voices = len({item.voice for item in known + unknown_voice})
    figures["pnmi"] = Estimate(quality["pnmi"], voices, quality["pnmi"], quality["pnmi"])
    return {
        "figures": {name: asdict(estimate) for name, estimate in figures.items()},
        "qa_by_kind": answers.by_kind(draws),
        "qa_baseline": asdict(bootstrap_mean([float(b) for b in baseline], draws=draws)),
        "examples": [asdict(example) for example in answers.examples],
    }


def evaluate_set(run: Run, folder: Path) -> dict:
    """Score a run on a folder with `items.jsonl` as `speechgpt corpora sample` writes it (path, text, answer, kind, voice, seen)."""
    draws = run.recipe.evaluation.bootstrap_draws
    items, records = read_items(folder)
    speechgpt = SpeechGPT.load(run)
    template, _ = lab_judges()
    heard = speechgpt.transcribe([i.wave for i in items])
    figures = {"asr_wer": word_error_rate([i.text for i in items], heard, draws)}
    questions = [i for i in items if i.answer]
    result: dict = {
        "run": str(run.path),
        "items": len(items),
        "seen_in_training": sum(bool(r.get("seen")) for r in records),
    }
    if questions:
        answers = answer_questions(speechgpt, questions, template)
        figures |= answers.figures(draws)
        result |= {
            "qa_by_kind": answers.by_kind(draws),
            "examples": [asdict(e) for e in answers.examples],
        }
    transcripts = [
        {"path": r["path"], "text": i.text, "heard": h}
        for r, i, h in zip(records, items, heard, strict=True)
    ]
    return {name: asdict(e) for name, e in figures.items()} | result | {"transcripts": transcripts}


@dataclass(frozen=True)
class Answers:
    """Questions with their answers as scored: `replies` are spoken ones, `examples` one a question, `waves` what was said."""

    examples: list[Example]
    waves: list[np.ndarray]
    wellformed: list[bool]

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
        kinds = sorted({e.kind for e in self.examples}, key=world.KINDS.index)
        of = {kind: [e for e in self.examples if e.kind == kind] for kind in kinds}
        return {
            kind: {
                "text": asdict(bootstrap_mean([float(e.right_text) for e in group], draws=draws)),
                "speech": asdict(
                    bootstrap_mean([float(e.right_speech) for e in group], draws=draws)
                ),
            }
            for kind, group in of.items()
        }


def answer_questions(
    speechgpt: SpeechGPT, questions: Sequence[Item], judge: SpeechJudge
) -> Answers:
    """Ask every question twice, for a written and for a spoken answer; the judge listens to the spoken ones."""
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
    return Answers(examples, said, [reply.wellformed for reply in (*written, *spoken)])


def balanced_questions(items: Sequence[Item], per_kind: int) -> list[Item]:
    """The same number of questions of every kind: `per_kind`, or as many as the rarest kind has."""
    of = {kind: [i for i in items if i.kind == kind] for kind in world.KINDS}
    count = min(per_kind, *(len(group) for group in of.values()))
    return [group[k] for k in range(count) for group in of.values()]


def nearest_question_baseline(run: Run, questions: Sequence[Item]) -> list[bool]:
    """Would the answer to the most similar training question do?  Similarity is word edit distance on the true transcripts."""
    units = run.require(pipeline.UNITS)
    train = {
        row.text: row.answer
        for row in read_units(units.path, None, {"split": "train", "kind": list(world.KINDS)})
    }
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
            f"no items.jsonl in {folder}: make a set with `speechgpt corpora sample -n 50 -o {folder}`"
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


def _held_out(run: Run, split: str) -> list[Item]:
    rows = read_utterances(run.require(pipeline.CORPUS).path, audio=True, where={"split": split})
    items = [Item(u.wave, u.text, u.answer, u.kind, u.voice) for u in rows]
    if not items:
        raise UserError(
            f"the corpus of {run.path} has no held-out speech: raise corpus.test_sentences in its recipe"
        )
    return shuffled(items, run.recipe.seed)
