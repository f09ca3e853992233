"""The lab's own minimal pairs: what makes one side right and the other wrong."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from speechgpt_lib.corpora import lab_pairs, world
from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.corpora.minimal_pairs import read_pairs


def test_words_and_others_that_only_sound_alike() -> None:
    known = {word: lab_pairs.phones_of(word) for word in world.vocabulary()}
    pairs = lab_pairs.word_pairs(random.Random(0), 30)
    assert len(pairs) > 25
    for word, other in pairs:
        phones = lab_pairs.phones_of(other)
        assert word in known and phones not in known.values()
        assert len(phones) == len(known[word]) > 2


def test_the_same_words_in_no_order_of_the_world() -> None:
    pairs = lab_pairs.order_pairs(random.Random(0), 30)
    assert len(pairs) == 30
    for right, wrong in pairs:
        assert sorted(right.split()) == sorted(wrong.split())
        assert world.is_held_out(right)
        assert lab_pairs.is_sentence(right) and not lab_pairs.is_sentence(wrong)


def test_questions_about_what_was_told_and_what_was_not() -> None:
    for (right,), (wrong,) in lab_pairs.topic_pairs(random.Random(0), 30):
        asked, other = right.split()[-1], wrong.split()[-1]
        assert asked in right.split()[:-1] and other not in wrong.split()[:-1]
        assert world.is_held_out(right)


def test_no_pair_comes_twice() -> None:
    for make in (lab_pairs.topic_pairs, lab_pairs.answer_pairs, lab_pairs.order_pairs):
        pairs = make(random.Random(1), 300)
        assert len(
            {pair[0] for pair in pairs} if make is lab_pairs.order_pairs else set(pairs)
        ) == (len(pairs))


def test_right_and_wrong_answers() -> None:
    for (question, answer), (same, other) in lab_pairs.answer_pairs(random.Random(0), 30):
        assert question == same and world.is_held_out(question)
        assert answer in question  # it is one of the two facts
        assert other not in question and other.split()[-1] in question.split()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    lab_pairs.write_lab_pairs(folder, 3, 1, "Female2")
    return folder


def test_all_are_written_in_the_published_layouts(written: Path) -> None:
    pairs = read_pairs(written)
    parts = [pair.part for pair in pairs]
    assert {part: parts.count(part) for part in parts} == dict.fromkeys(
        ("answer", "order", "topic", "words"), 3
    )
    for pair in pairs:
        assert min(len(read_audio(written / name)) for name in (pair.right, pair.wrong)) > 4000
    rows = list(csv.DictReader((written / "words" / "gold.csv").open()))
    assert [row["correct"] for row in rows] == ["1", "0"] * 3


@pytest.mark.slow
def test_a_seed_gives_the_same_samples(written: Path, tmp_path: Path) -> None:
    lab_pairs.write_lab_pairs(tmp_path, 3, 1, "Female2")
    for path in written.rglob("*.*"):
        assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes()
    lab_pairs.write_lab_pairs(tmp_path / "other", 3, 2, "Female2")
    gold = Path("order") / "gold.csv"
    assert (tmp_path / "other" / gold).read_text() != (written / gold).read_text()
