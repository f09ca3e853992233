"""Figures and report of a run: with judges of either kind and without, with questions and without,
and what was cut is counted."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch

from speechgpt_lib.corpora.audio import nothing_heard
from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.world import vocabulary
from speechgpt_lib.dialogue.speechgpt import Reply
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation import judges as evaluation_judges
from speechgpt_lib.evaluation import measure
from speechgpt_lib.evaluation.judges import (
    as_whisper_counts,
    comparable,
    hearing,
    judges_if_installed,
)
from speechgpt_lib.evaluation.measure import Item, balanced_questions, evaluate_set
from speechgpt_lib.evaluation.report import write_report
from speechgpt_lib.language_model.generation import Chain, Sampling, Spoken, Written
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.recipes.loading import check_sources, load_recipe
from speechgpt_lib.runs.run import Run
from tests.builders import noise, spoken, tiny_inventory
from tests.pipeline.test_imports import libri


class Judge:
    """Hears what it was told to hear."""

    def __init__(self, *heard: str):
        self.heard, self.next = heard, 0

    def transcribe(self, wave) -> str:
        self.next += 1
        return self.heard[(self.next - 1) % len(self.heard)]

    def transcribe_many(self, waves) -> list[str]:
        self.next = 0
        return [self.transcribe(wave) for wave in waves]


@dataclass
class Parrot:
    """A SpeechGPT that always says the same; every second answer meets its longest length."""

    corpora: object
    said: list[str] = field(default_factory=list)

    def units(self, wave: np.ndarray) -> np.ndarray:
        return np.array([1, 2])

    def speak(self, units: np.ndarray) -> np.ndarray:
        return np.zeros(640, np.float32)

    def transcribe_many(self, waves) -> list[Written]:
        return [Written("good day number 1", bool(k % 2)) for k, _ in enumerate(waves)]

    def say_many(self, texts) -> list[Spoken]:
        return [Spoken(np.array([1]), False, np.zeros(640, np.float32)) for _ in texts]

    def ask_many(self, waves, reply: str) -> list[Reply]:
        spoken = (np.array([1]), np.zeros(640, np.float32)) if reply == "speech" else (None, None)
        return [Reply("why", "so", *spoken, True, reply == "speech") for _ in waves]

    def chains(self, asked, reply: str, sampling: Sampling) -> list[Chain]:
        assert sampling.temperature == 0.7
        drawn = [bool(torch.rand(()) < 0.5) or reply == "text" for _ in asked]
        return [Chain("why", "so", None, formed, False) for formed in drawn]


class Corpora:
    """Corpora with these judges, or with the reason why there are none."""

    def __init__(self, judges: dict | str):
        self.found = judges

    normalise = staticmethod(str.lower)

    def judges(self) -> dict:
        if isinstance(self.found, str):
            raise UserError(self.found)
        return self.found


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a corpus of noise, with units and without an open judge; its models are empty
    folders."""
    return noisy_run(tmp_path_factory.mktemp("noisy"), "none").path


@pytest.fixture
def run(noisy: Path, tmp_path: Path) -> Run:
    """A copy of it, for one test alone."""
    shutil.copytree(noisy, tmp_path / "run")
    return Run.open(tmp_path / "run", say=lambda line: None)


def noisy_run(tmp_path: Path, open_judge: str) -> Run:
    said: list[str] = []
    tiny_inventory().save(tmp_path / "inventory")
    changes = {"data": str(tmp_path), "corpora": libri(tmp_path), "imports.inventory": "inventory"}
    changes["evaluation.open_judge"] = open_judge
    run = Run.create(tmp_path / "run", load_recipe("smoke", changes), said.append)
    for name in ("corpus", "inventory", "units"):
        make(run, name)
    for name in ("vocoder", "stage2", "stage3"):
        run.step(name, lambda work: {}, settings={})
    return run


def parrot(run: Run, monkeypatch: pytest.MonkeyPatch, corpora: object) -> None:
    monkeypatch.setattr(measure.SpeechGPT, "load", lambda run, voice=None: Parrot(corpora))


@pytest.mark.slow
def test_a_corpus_without_judge_and_questions_still_has_a_report(run: Run, monkeypatch) -> None:
    own = open_corpora(run.recipe, run.require("corpus").path)
    parrot(run, monkeypatch, own)
    step = make(run, "evaluation")
    figures = step.metrics["figures"]
    assert figures.keys() == {"asr_wer", "asr_wer_whisper"} and figures["asr_wer"]["n"] > 0
    assert figures["asr_wer"]["low"] <= figures["asr_wer"]["value"] <= figures["asr_wer"]["high"]
    assert step.metrics["cut"] == {"asr_wer": figures["asr_wer"]["n"] // 2}
    report = write_report(run)
    assert report == json.loads((run.path / "report.json").read_text())
    assert report["qa_baseline"] is None and report["qa_by_kind"] == {}
    assert report["cut"] == step.metrics["cut"] and report["cpu_seconds"]["value"] >= 0
    assert report["machine"]["cpu"]["name"] and report["steps"]["01_unit_extraction/units"]
    page = (run.path / "report.html").read_text()
    assert "no questions with answers" in page and "Open judge: none: the recipe has" in page
    assert (
        f"Answers cut at their longest length: {step.metrics['cut']['asr_wer']} of asr_wer" in page
    )


def test_with_a_judge_speech_is_measured_too(run: Run, monkeypatch) -> None:
    parrot(run, monkeypatch, Corpora({"": Judge("good day number 1")}))
    figures = make(run, "evaluation").metrics["figures"]
    assert {"asr_wer", "tts_wer", "tts_wer_ceiling", "resynthesis_wer"} <= figures.keys()
    assert figures["tts_wer"]["value"] == figures["tts_wer_ceiling"]["value"]


def open_judge(monkeypatch, found: object) -> None:
    """Makes `found` the open judge of this machine; an error says why there is none."""

    def opened(*_: object) -> object:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(evaluation_judges.open_judge, "open_judge", opened)
    known = None if isinstance(found, Exception) else {"by": [str(found)]}
    monkeypatch.setattr(evaluation_judges.open_judge, "identity", lambda *_: known)
    described = f"none: {found}" if isinstance(found, Exception) else "Whisper"
    monkeypatch.setattr(evaluation_judges.open_judge, "describe", lambda *_: described)


@pytest.mark.slow
def test_a_judge_without_grammar_hears_every_corpus(tmp_path, monkeypatch) -> None:
    run = noisy_run(tmp_path, "auto")
    parrot(run, monkeypatch, open_corpora(run.recipe, run.require("corpus").path))
    open_judge(monkeypatch, Judge("Good day, number 1."))
    step = make(run, "evaluation")
    names = {f"{k}_wer_open{c}" for k in ("tts", "resynthesis") for c in ("", "_ceiling")}
    assert step.metrics["figures"].keys() == {"asr_wer", "asr_wer_whisper"} | names
    assert step.facts["settings"]["open_judge"] == evaluation_judges.open_judge.identity()
    report = write_report(run)
    assert report["open_judge"] == "Whisper" and "Whisper" in (run.path / "report.html").read_text()
    assert report["tts_wer_open"]["low"] <= report["tts_wer_open"]["value"]
    open_judge(monkeypatch, UserError("no open judge: nothing installed"))
    remade = make(run, "evaluation")
    figures = remade.metrics["figures"].keys()
    assert not remade.reused and figures == {"asr_wer", "asr_wer_whisper"}
    assert write_report(run)["open_judge"] == "none: no open judge: nothing installed"


def test_judges_are_compared_with_each_other(run: Run, monkeypatch) -> None:
    template, stranger = Judge("good day number one"), Judge("Good day, number 1!", "what?")
    items = [Item(np.zeros(1), "good day number one", "", "", "a")] * 4
    spoken = {"tts": [np.zeros(1)] * 4, "resynthesis": [np.zeros(1)] * 2}
    both = {"": template, "_bigram": template, "_open": stranger}

    def judged() -> dict:
        with hearing(both) as hears:
            for way, waves in ({"": spoken["tts"]} | spoken).items():
                hears.begin(way, waves)
            return measure.spoken_rates(items, hears.words(), 50, open_corpora(run.recipe))

    figures = judged()
    assert figures["tts_wer"]["value"] == figures["tts_wer_ceiling_bigram"]["value"] == 0
    assert figures["tts_wer_open"]["value"] == figures["tts_wer_open_ceiling"]["value"] == 0.5
    assert [figures[f"resynthesis_wer_open{c}"]["n"] for c in ("", "_ceiling")] == [2, 2]
    assert figures["judge_agreement"]["value"] == figures["judge_agreement_ceiling"]["value"] == 0.5
    assert len(figures) == 2 * 2 * 3 + 2
    del both["_open"]
    assert not any("agreement" in name for name in judged())


def test_what_the_open_judge_has_not_begun_is_left_when_an_evaluation_ends_early() -> None:
    begun, go_on = [], threading.Event()

    class Slow:
        def transcribe(self, wave) -> str:
            begun.append(wave)
            go_on.wait(30)
            return "so"

    with pytest.raises(KeyboardInterrupt), hearing({"_open": Slow()}) as hears:
        hears.begin("tts", [np.zeros(1)] * 100)
        go_on.set()
        raise KeyboardInterrupt
    assert len(begun) < 100


def test_an_open_judge_that_was_asked_for_by_name_must_be_there(tmp_path, monkeypatch) -> None:
    open_judge(monkeypatch, UserError("no open judge 'x'"))
    said: list[str] = []
    recipe = load_recipe("smoke", {"evaluation.open_judge": "auto"})
    assert judges_if_installed(recipe, Corpora({}), said.append) == {}
    assert said == ["no open judge 'x'", "no word error rates of speech: nothing here judges it"]
    recipe = load_recipe("smoke", {"evaluation.open_judge": "x"})
    with pytest.raises(UserError, match="no open judge 'x'"):
        judges_if_installed(recipe, Corpora({}), said.append)
    monkeypatch.undo()
    with pytest.raises(UserError, match="no open judge"):
        check_sources(recipe)  # before any work
    recipe = load_recipe("smoke", {"evaluation.open_judge": "none"})
    check_sources(recipe)
    assert judges_if_installed(recipe, Corpora({"": "one"}), said.append) == {"": "one"}


@pytest.mark.parametrize("name", ["lab", "libri"])
@pytest.mark.parametrize(
    ("heard", "meant"),
    [
        ("What's the colour? Grey!", "what's the color gray"),
        ("Which is bigger, 8 or 4?", "which is bigger eight or four"),
        ("what is 2 + 3", "what is two plus three"),
        ("We travelled to the theatre.", "we traveled to the theater"),
        ("It was centred, I realised.", "it was centered i realized"),
        ("four our hour flour pour", "four our hour flour pour"),
    ],
)
def test_what_a_stranger_writes_down_is_compared_by_its_words(run, name, heard, meant) -> None:
    corpora = open_corpora(load_recipe("smoke") if name == "lab" else run.recipe)
    assert comparable(corpora, heard) == comparable(corpora, meant) == meant


def test_the_usual_normalisation_of_open_english() -> None:
    said = "um, Mr. Smith won't pay twenty-one dollars for the colour [laughs]; it's Dr. Brown's"
    heard = "mister smith will not pay $21 for the color it is doctor brown's"
    assert as_whisper_counts(said) == as_whisper_counts(heard)
    assert as_whisper_counts("um [laughs]") == ""


def test_spelling_never_makes_one_word_of_two_in_the_lab() -> None:
    corpora, words = open_corpora(load_recipe("smoke")), vocabulary()
    assert [comparable(corpora, word) for word in words] == words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sentences as `corpora sample` writes them; two are questions."""
    rows = [
        {"path": "a.wav", "text": "good day number 1", "seen": True},
        {"path": "b.wav", "text": "why is it", "answer": "so", "kind": "reason"},
        {"path": "c.wav", "text": "why is it not", "answer": "no", "kind": "reason"},
    ]
    set_folder = tmp_path / "set"
    set_folder.mkdir()
    for row in rows:
        soundfile.write(set_folder / row["path"], noise(0.5), 16_000)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (set_folder / "items.jsonl").write_text(lines)
    return set_folder


def test_a_set_counts_where_nothing_was_heard(run: Run, folder: Path, monkeypatch) -> None:
    class Deaf(Parrot):
        def transcribe_many(self, waves) -> list[Written]:
            return [Written("", False, nothing_heard(wave)) for wave in waves]

    monkeypatch.setattr(measure.SpeechGPT, "load", lambda run, voice=None: Deaf(Corpora("none")))
    soundfile.write(folder / "a.wav", np.zeros(16_000), 16_000)
    opposite = np.stack([noise(0.5), -noise(0.5)], 1)
    soundfile.write(folder / "b.wav", opposite, 16_000)
    report = evaluate_set(run, folder)
    why = [one["nothing_heard"] for one in report["transcripts"]]
    assert why[0].startswith("silent") and why[1:] == [None, None]
    assert report["nothing_heard"] == 1 and json.dumps(report)


def test_a_set_is_scored_and_what_was_cut_is_counted(run: Run, folder: Path, monkeypatch) -> None:
    parrot(run, monkeypatch, Corpora({"": Judge("so", "so")}))
    report = evaluate_set(run, folder)
    assert (report["items"], report["seen_in_training"]) == (3, 1)
    assert report["cut"] == {"asr_wer": 1, "qa": 2}, "every second transcript, spoken answers"
    assert report["qa_text_accuracy"]["value"] == report["qa_speech_accuracy"]["value"] == 0.5
    assert report["qa_by_kind"].keys() == {"reason"} and len(report["transcripts"]) == 3
    assert json.dumps(report)


def test_form_is_measured_on_the_same_draws_each_time() -> None:
    waves = [noise(0.5)] * 20 + [np.zeros(8000, np.float32)] * 4
    torch.manual_seed(5)
    first = measure.sampled_form(Parrot(None), waves, draws=50)
    state = torch.get_rng_state()
    assert first == measure.sampled_form(Parrot(None), waves, draws=50)
    assert torch.equal(state, torch.get_rng_state()), "nobody else's draws change"
    assert first["n"] == 2 * len(waves) and 20 / 48 < first["value"] < 40 / 48
    silent = measure.sampled_form(Parrot(None), waves[20:], draws=50)
    assert silent["value"] == 0


@pytest.mark.parametrize("judges", [{}, "the judge is not installed"])
def test_a_set_without_a_judge_has_transcripts(run: Run, folder: Path, monkeypatch, judges) -> None:
    parrot(run, monkeypatch, Corpora(judges))
    report = evaluate_set(run, folder)
    assert report["asr_wer"]["n"] == 3 and "qa_speech_accuracy" not in report
    assert report["cut"] == {"asr_wer": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no items.jsonl in .*corpora sample"),
        ("", "is empty: make a set"),
        ("{\n", "line 1 can't be read .* expected an object with path and text"),
        ('{"path": "a.wav"}\n', "line 1 can't be read .* expected an object with path and text"),
        ('{"path": "none.wav", "text": "a"}\n', "none.wav"),
    ],
)
def test_a_set_that_is_none_is_refused(
    run: Run, folder: Path, text: str | None, words: str
) -> None:
    (folder / "items.jsonl").unlink()
    if text is not None:
        (folder / "items.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        evaluate_set(run, folder)
    assert "\n" not in str(error.value)


def test_every_kind_of_question_counts_the_same() -> None:
    def item(kind: str, rank: int, answer: str = "yes") -> Item:
        return Item(np.zeros(1), f"{kind} {rank}", answer, kind, "a", rank)

    items = [item("b", 1)] * 5 + [item("a", 0)] * 3 + [item("c", 2, "")] * 9
    assert [i.kind for i in balanced_questions(items, 2)] == ["a", "b", "a", "b"]
    assert [i.kind for i in balanced_questions(items, 9)] == ["a", "b"] * 3
    assert balanced_questions([item("c", 0, "")], 2) == []


@pytest.mark.parametrize(
    "line",
    [
        ("Good day, NUMBER ONE!", "So."),
        ("good day №1", "“so”"),
        ("Good-day number 1", "SO?"),
        ("\ufeffgood day number one", " so "),
    ],
)
def test_both_sides_are_spelled_alike(run: Run, folder: Path, monkeypatch, line) -> None:
    corpora = Corpora({"": Judge("So!")})
    corpora.normalise = open_corpora(run.recipe).normalise
    parrot(run, monkeypatch, corpora)
    row = {"path": "a.wav", "text": line[0], "answer": line[1], "kind": "k"}
    (folder / "items.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8-sig")
    report = evaluate_set(run, folder)
    assert report["asr_wer"]["value"] == 0.0 and "small letters" in report["compared"]
    assert report["qa_text_accuracy"]["value"] == report["qa_speech_accuracy"]["value"] == 1.0
    assert report["transcripts"][0]["text"] == line[0], "reported as it stands"


def test_a_set_without_words_is_told(run: Run, folder: Path, monkeypatch) -> None:
    corpora = Corpora({})
    corpora.normalise = open_corpora(run.recipe).normalise
    parrot(run, monkeypatch, corpora)
    (folder / "items.jsonl").write_text('{"path": "a.wav", "text": "?!"}\n\n')
    with pytest.raises(UserError, match="no word in any transcript"):
        evaluate_set(run, folder)
    (folder / "items.jsonl").write_text('{"path": "a.wav", "text": null}')
    with pytest.raises(UserError, match="line 1 can't be read .* expected an object with path"):
        evaluate_set(run, folder)
    (folder / "items.jsonl").write_text('{"path": "a.wav", "text": "x"}', "utf-16")
    with pytest.raises(UserError, match="items.jsonl is not UTF-8"):
        evaluate_set(run, folder)


def test_what_speaking_loses() -> None:
    asked = [(True, True), (True, False), (True, False), (False, True), (True, True)]
    examples = [{"right_text": t, "right_speech": s} for t, s in asked]
    gap = measure.answer_gap(examples, 100)["answer_gap"]
    assert gap["value"] == pytest.approx(0.2) and gap["n"] == 5 and gap["low"] <= 0.2 <= gap["high"]
    assert measure.answer_gap([], 100) == {}


@pytest.mark.slow
def test_many_waves_are_heard_in_another_process_and_alike(monkeypatch) -> None:
    monkeypatch.setattr(evaluation_judges, "FEW", 2)
    judges = open_corpora(load_recipe("smoke")).judges()
    words = "the dog is in the garden", "anna has the cat", "what is two plus three"
    waves = spoken(*words)
    with hearing(judges) as hears:
        hears.begin("tts", waves)
        hears.begin("resynthesis", waves[:1])
        heard = hears.words()
    for suffix, judge in judges.items():
        assert heard["tts", suffix] == judge.transcribe_many(waves)
        assert heard["resynthesis", suffix] == heard["tts", suffix][:1]


@pytest.mark.parametrize("noticed", ["at the end", "at the next way of speaking"])
def test_a_process_that_hears_and_is_lost_is_one_line(monkeypatch, noticed: str) -> None:
    monkeypatch.setattr(evaluation_judges, "FEW", 2)
    (wave,) = spoken("the dog is in the garden")
    judges = open_corpora(load_recipe("smoke")).judges()
    lost = "process in which judges hear was lost"
    with pytest.raises(UserError, match=lost), hearing(judges) as hears:
        hears.begin("tts", [wave] * 60)
        found = psutil.Process().children()
        (child,) = (p for p in found if "spawn_main" in " ".join(p.cmdline()))
        child.kill()
        if noticed != "at the end":
            with contextlib.suppress(BrokenProcessPool):
                list(hears.begun["tts", ""])
            hears.begin("resynthesis", [wave] * 60)
        hears.words()
