"""The corpora of a recipe become one utterance table, whatever they are and wherever they lie."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt_lib.corpora import build as room
from speechgpt_lib.corpora.build import DiskReader, build_table, open_corpora
from speechgpt_lib.corpora.corpus import Corpora, Piece, Question
from speechgpt_lib.corpora.held_out import is_held_out
from speechgpt_lib.corpora.lab import LabReader
from speechgpt_lib.corpora.tables import Utterance, read_quarantine, read_utterances, table_shards
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import DiskCorpus
from tests.corpora import layouts

SENTENCES = [
    f"SENTENCE NUMBER {word}" for word in "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT".split()
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of data: LibriSpeech with two speakers and a test subset, Libri-Light, LJSpeech."""
    root = tmp_path_factory.mktemp("data")
    chapters = {"train-clean-100/1/10": SENTENCES[:5], "train-clean-100/2/20": SENTENCES[5:]}
    layouts.librispeech(root / "speech", chapters | {"test-clean/3/30": ["TEST ONE", "TEST TWO"]})
    layouts.libri_light(root / "light", {"small/100/book/a": [[0, 1], [4, 5]]})
    layouts.lj_speech(root / "lj", {"LJ1": "I don't, you 4", "LJ2": "Well!"})
    return root


def recipe(data: Path, *corpora: dict, seed: int = 0) -> Recipe:
    return load_recipe("smoke", {"corpora": list(corpora), "data": str(data), "seed": seed})


def speech(*splits: str, **more) -> dict:
    return {"reader": "librispeech", "root": "speech", "splits": list(splits) or None} | more


TRAIN, TEST = speech("train-clean-100"), speech("test-clean", role="test")
LIGHT = {"reader": "libri_light", "root": "light", "role": "unlabelled"}
VOICE = {"reader": "lj_speech", "root": "lj", "role": "voice"}


def build(folder: Path, *arguments, **options) -> tuple[dict, list[Utterance]]:
    """What is told of the table, and its rows."""
    told = build_table(recipe(*arguments, **options), folder, say=lambda line: None)
    return told, list(read_utterances(folder))


# --- roles ---
def test_each_role_has_its_split(data, tmp_path):
    told, rows = build(tmp_path, data, TRAIN, LIGHT, VOICE, TEST)
    assert {(u.split, u.voice, bool(u.text)) for u in rows} == {
        ("train", "1", True),
        ("train", "2", True),
        ("unlabelled", "100", False),
        ("voice", "LJ", True),
        ("test", "3", True),
    }
    counts = {"train": 8, "unlabelled": 2, "voice": 2, "test": 2, "test_voice": 0}
    assert {name: told[name] for name in counts} == counts
    assert told["utterances"] == len(rows) == 14 and told["voices"] == ["1", "100", "2", "3", "LJ"]
    assert told["hours"] == round(sum(u.seconds for u in rows) / 3600, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "libri_light-1",
        "librispeech-0",
        "librispeech-3",
        "lj_speech-2",
    ]
    assert all(len(u.read()) == round(16_000 * u.seconds) for u in rows)


def test_the_voices_that_answer(data, tmp_path):
    """Those with the role voice; without one, those that are aligned."""
    assert build(tmp_path / "a", data, TRAIN, LIGHT, VOICE, TEST)[0]["speaking"] == ["LJ"]
    assert build(tmp_path / "b", data, TRAIN, LIGHT, TEST)[0]["speaking"] == ["1", "2"]
    both = VOICE | {"role": ["aligned", "voice"]}
    told, rows = build(tmp_path / "c", data, TRAIN, both, TEST)
    assert told["speaking"] == ["LJ"] and told["voice"] == 0 and told["train"] == 10
    for order in (["unlabelled", "voice"], ["voice", "unlabelled"]):
        told, _ = build(tmp_path / order[0], data, TRAIN, LIGHT | {"role": order}, TEST)
        assert told["speaking"] == ["100"] and told["voice"] == 2, "the order makes no difference"


def test_what_has_no_text_is_speech_alone_and_never_test(tmp_path):
    root = layouts.librispeech(tmp_path / "data/speech", {"dev/1/1": SENTENCES[:3], "t/2/2": ["A"]})
    for name in ("dev/1/1/1-1.trans.txt", "t/2/2/2-2.trans.txt"):
        path = root / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    layouts.librispeech(root, {"t/4/4": ["B"]})
    for split, role in (("unlabelled", ["aligned"]), ("voice", ["aligned", "voice"])):
        corpora = speech("dev", role=role), speech("t", role="test")
        _, rows = build(tmp_path / split, tmp_path / "data", *corpora)
        assert [u.split for u in rows] == [split, "train", "train", "test"]
        assert [bool(u.text) for u in rows] == [False, True, True, True]


def test_a_share_of_the_sentences_is_held_out(data, tmp_path):
    _, rows = build(tmp_path, data, TRAIN | {"held_out": 0.5}, LIGHT | {"held_out": 0.9})
    for u in rows:
        spoken = "test" if is_held_out(u.text, 0.5) else "train"
        assert u.split == (spoken if u.text else "unlabelled")
    assert {u.split for u in rows} == {"train", "test", "unlabelled"}


def test_texts_are_spelled_in_the_corpus_own_way(data, tmp_path):
    told, rows = build(tmp_path, data, VOICE | {"role": "aligned"}, TEST)
    assert [u.text for u in rows if u.voice == "LJ"] == ["i don't you four", "well"]
    corpora = open_corpora(recipe(data, VOICE, TEST))
    assert corpora.normalise("  'Tis  WELL,-- isn't IT? Ça va! ") == "tis well isn't it ça va"
    assert corpora.unknown_words("anything at all") == [] and corpora.judges() == {}
    assert corpora.questions(random.Random(0), 5) == corpora.held_out_questions(3) == []


# --- a limited number ---
def test_a_sample_is_a_function_of_the_ids(data, tmp_path):
    limited = TRAIN | {"utterances": 3}
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _, rows = build(tmp_path / name, data, limited, TEST, seed=seed)
        found[name] = [u.id for u in rows if u.split == "train"]
    assert found["a"] == found["b"] != found["c"] and len(found["a"]) == 3
    _, rows = build(tmp_path / "d", data, TRAIN | {"utterances": 5}, TEST)
    assert set(found["a"]) < {u.id for u in rows}, "a larger sample holds the smaller one"
    _, rows = build(tmp_path / "e", data, TRAIN | {"utterances": 99}, TEST)
    assert len(rows) == 10


def test_a_sample_does_not_depend_on_what_else_is_there(data, tmp_path):
    chosen = {u.id for u in build(tmp_path / "a", data, TRAIN | {"utterances": 3}, TEST)[1]}
    more = tmp_path / "more"
    chapters = {"train-clean-100/0/5": ["NEW"] * 4, "train-clean-100/1/10": SENTENCES[:5]}
    layouts.librispeech(more / "speech", chapters | {"train-clean-100/2/20": SENTENCES[5:]})
    layouts.librispeech(more / "speech", {"test-clean/3/30": ["TEST ONE", "TEST TWO"]})
    again = {u.id for u in build(tmp_path / "b", more, TRAIN | {"utterances": 3}, TEST)[1]}
    assert {i for i in again if not i.startswith("0-5")} <= chosen


# --- what is refused ---
def test_recipes_that_cannot_work_are_refused_in_one_line(data, tmp_path):
    lab = load_recipe("smoke").corpora[0].model_dump()
    refused = {
        "no corpus of the recipe has held-out speech to measure on: give one `role: test`": [TRAIN],
        "no corpus of the recipe has speech to learn from: give one the role aligned": [TEST],
        "two corpora of the recipe have an utterance '1-10-0000': name each corpus once": [
            TRAIN,
            speech(role="unlabelled"),
            TEST,
        ],
        "two corpora of the recipe have an utterance '3-30-0000'": [TRAIN, TEST, TEST],
        "two corpora with reader lab": [lab, lab],
        "LibriSpeech has no option whole_files: there are none": [
            TRAIN | {"options": {"whole_files": True}, "utterances": 3},
            TEST,
        ],
        "no split nowhere in": [speech("nowhere"), TEST],
        "no folder at": [TRAIN | {"root": "elsewhere"}, TEST],
        "no utterance of Libri-Light": [TRAIN, LIGHT | {"role": "test"}],
    }
    with pytest.raises(UserError, match="corpora.*role"):
        recipe(data, TRAIN | {"role": []})
    for number, (words, corpora) in enumerate(refused.items()):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            build(tmp_path / str(number), data, *corpora)
        assert "\n" not in str(error.value)


def test_ids_are_compared_themselves_where_their_hashes_agree(data, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "hash", lambda text: 7, raising=False)
    assert build(tmp_path / "a", data, TRAIN, TEST)[0]["utterances"] == 10
    with pytest.raises(UserError, match="'3-30-0000'"):
        build(tmp_path / "b", data, TRAIN, TEST, TEST)


def test_the_table_is_read_once(data, tmp_path, monkeypatch):
    read = []
    genuine = room.read_utterances
    monkeypatch.setattr(
        room, "read_utterances", lambda *a, **o: (read.append(u) or u for u in genuine(*a, **o))
    )
    _, rows = build(tmp_path, data, TRAIN, LIGHT, VOICE, TEST)
    assert len(read) == len(rows)


def test_unreadable_recordings_are_left_out_and_counted(data, tmp_path):
    root = layouts.librispeech(tmp_path / "data/speech", {"dev/1/1": SENTENCES[:4]})
    layouts.librispeech(root, {"test-clean/3/30": ["TEST ONE", "TEST TWO"]})
    (root / "dev/1/1/1-1-0001.flac").write_bytes(b"")
    lines = []
    corpora = recipe(tmp_path / "data", speech("dev"), TEST)
    assert build_table(corpora, tmp_path / "out", lines.append)["utterances"] == 5
    assert "utterances-00000.parquet: 3 utterances, 0.00 h, 1 in quarantine" in lines
    (bad,) = read_quarantine(tmp_path / "out/librispeech-0/quarantine.parquet")
    assert (bad.id, bad.reason) == ("1-1-0001", "empty")
    (root / "dev/1/1/1-1-0002.flac").unlink()
    with pytest.raises(UserError, match="2 of 4 utterances"):
        build(tmp_path / "strict", tmp_path / "data", speech("dev"), TEST)
    loose = speech("dev", max_bad_share=0.6)
    assert build(tmp_path / "loose", tmp_path / "data", loose, TEST)[0]["train"] == 2


# --- resume ---
def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_killed_build_resumes_to_the_same_files(data, tmp_path):
    """No exception handler runs: what is on disk is what the next process finds."""
    settings = recipe(data, TRAIN, LIGHT, TEST)
    build_table(settings, tmp_path / "whole", say=lambda line: None)
    program = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from speechgpt_lib.corpora import build, tables\n"
        "from speechgpt_lib.recipes.schema import Recipe\n"
        "genuine = tables.write_segments\n"
        "def dying(path, rows, root):\n"
        "    fatal = 'light' in str(path)\n"
        "    genuine(path, (os.kill(os.getpid(), 9) if fatal else row for row in rows), root)\n"
        "tables.write_segments = dying\n"
        "build.build_table(Recipe(**json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, settings.model_dump_json(), str(tmp_path / "killed")],
        cwd=Path(room.__file__).parents[2],
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    left = [path for path in (tmp_path / "killed").rglob("*.parquet") if path.is_file()]
    assert any(path.parent.name.startswith(".utterances-") for path in left), "half-written"
    assert [path.parent.name for path in table_shards(tmp_path / "killed")] == ["librispeech-0"]
    kept = tmp_path / "killed/librispeech-0/utterances-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    lines = []
    build_table(settings, tmp_path / "killed", lines.append)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert kept.stat().st_mtime_ns == stamp and "is prepared already" in lines[0]


# --- text, of one corpus and of several ---
def test_documents_are_transcripts_of_the_training_side(data, tmp_path):
    corpora = TRAIN | {"held_out": 0.3}, LIGHT, VOICE
    _, rows = build(tmp_path, data, *corpora)
    opened = open_corpora(recipe(data, *corpora), tmp_path)
    learned = {u.text for u in rows if u.split in ("train", "voice") and u.text}
    assert {u.text for u in rows if u.split == "test"}
    texts = list(opened.texts(0))
    assert set(texts) == learned and len(texts) == len(learned)
    documents = opened.documents(random.Random(3), 200)
    assert len(documents) == 200, "corpora without text leave their share to the others"
    assert {text for ((text, weight, last),) in documents} == learned
    assert documents == opened.documents(random.Random(3), 200)
    assert opened.documents(random.Random(3), 0) == []
    assert opened.members[1].documents(random.Random(0), 5) == [], "it has no text"


class Talking(LabReader):
    """A corpus that says one word, and knows no others."""

    def __init__(self, word: str):
        super().__init__(load_recipe("smoke").corpora[0], word)

    def unknown_words(self, text: str) -> list[str]:
        return [word for word in text.split() if word != self.name]

    def texts(self, seed: int):
        return iter([f"{self.name} {seed}"])

    def documents(self, rng, count, curriculum=False):
        return [(Piece(self.name, 0.5 if curriculum else 1.0),)] * count

    def questions(self, rng, count):
        return [] if self.name == "mute" else [Question(self.name, "yes", "kind")] * count

    def held_out_questions(self, per_kind):
        return self.questions(None, per_kind)


def test_one_corpus_answers_for_itself():
    one = Corpora((Talking("a"),))
    rng = random.Random(0)
    state = rng.getstate()
    assert one.documents(rng, 3, True) == [(Piece("a", 0.5),)] * 3 and rng.getstate() == state
    assert one.unknown_words("b a c") == ["b", "c"] and list(one.texts(7)) == ["a 7"]
    assert one.questions(rng, 2) == one.held_out_questions(2) == [Question("a", "yes", "kind")] * 2


def test_two_corpora_share():
    two = Corpora((Talking("mute"), Talking("b")))
    assert two.unknown_words("c b mute d") == ["c", "d"]
    assert list(two.texts(1)) == ["mute 1", "b 1"]
    said = [piece.text for (piece,) in two.documents(random.Random(0), 101)]
    assert len(said) == 101 and 50 <= said.count("b") <= 51 and said != sorted(said)
    assert [q.text for q in two.questions(random.Random(0), 2)] == ["b", "b"]
    assert [q.text for q in two.held_out_questions(2)] == ["b", "b"]
    assert two.normalise("The DOG!") == "the dog"


def test_the_lab_judges_its_own_sentences():
    reader = LabReader(load_recipe("smoke").corpora[0])
    assert set(reader.judges()) == {"", "_bigram"}
    assert reader.answers(Utterance("0", "", "", "", "Female2", "train"))
    assert not reader.answers(Utterance("0", "", "", "", "Male1", "train"))


# --- the reference material ---
def test_real_speech_of_four_corpora_becomes_one_table(reference, tmp_path):
    corpora = (
        speech("test-other", root="LibriSpeech", held_out=0.2),
        {"reader": "common_voice", "root": "CommonVoice/cv-corpus-17.0-2024-03-15"},
        {"reader": "gigaspeech", "root": "GigaSpeech", "options": {"lower": True}},
        {"reader": "libri_light", "root": "LibriLight", "role": ["unlabelled"]},
        speech("dev-clean", root="LibriSpeech", role="test"),
    )
    told, rows = build(tmp_path, reference / "speech", *corpora)
    assert told["utterances"] == len(rows) == 50 + 13 + 6 + 20 + 2
    assert told["unlabelled"] == 20 and told["train"] + told["test"] == 71 and told["test"] > 2
    assert told["hours"] == pytest.approx(0.1125 + 0.0143 + 0.0099 + 0.0705, abs=1e-3)
    texts = [u.text for u in rows if u.text]
    assert all(re.fullmatch(r"[\w' ]+", text) and text == text.lower() for text in texts)
    assert not {u.text for u in rows if u.split == "train"} & {
        u.text for u in rows if u.split == "test"
    }


def test_a_reader_of_the_recipe_is_a_small_object(data):
    (reader,) = open_corpora(recipe(data, TRAIN), say=print).members
    assert reader == DiskReader(DiskCorpus(**TRAIN), data / "speech", "librispeech-0")


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("Don’t — “stop”", "don't stop"),
        ("CAFE\u0301 and café", "café and café"),
        ("हिन्दी में", "हिन्दी में"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("''a''b''", "a b"),
        ("snake_case 🙂", "snake case"),
    ],
)
def test_one_spelling_for_one_text(data, written, spelled):
    assert open_corpora(recipe(data, TRAIN, TEST)).normalise(written) == spelled
