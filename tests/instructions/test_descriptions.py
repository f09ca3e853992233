"""A hundred task descriptions each, as the paper's prompt wants them, and a seeded choice."""

import collections
import re

import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.descriptions import choose_description, load_descriptions

TASKS = ("asr", "tts")
PINNED = {"asr": 15, "tts": 93}
PAPER_EXAMPLES = """
Begin by converting the spoken words into written text.
Can you transcribe the speech into a written format?
Focus on translating the audible content into text.
Transcribe the speech by carefully listening to it.
Would you kindly write down the content of the speech?
Analyze the speech and create a written transcription.
Engage with the speech to produce a text-based version.|Can you document the speech in written form?
Transform the spoken words into text accurately.
How about putting the speech's content into writing?
Can you please read this sentence out loud?
Recite the following words as if you were speaking normally.
Project your voice to clearly articulate this statement.
Would you mind speaking these words as naturally as possible?
Whisper the given sentence softly.|Enunciate each word in this sentence with precision.
How would you express this sentence in a conversational tone?
Could you please relay the message below verbally?
Emphasize the key points while reading the sentence.|Sing the text provided in a melodic voice.
Listen to the speech and write down its content.|Would you please speed-read the following sentence?
"""


@pytest.mark.parametrize("task", TASKS)
class TestDescriptions:
    def test_a_hundred_and_no_two_alike(self, task):
        found = load_descriptions(task)
        assert len(found) == 100
        assert len({re.sub(r"[^a-z ]", "", line.lower()) for line in found}) == 100

    def test_form(self, task):
        for line in load_descriptions(task):
            assert line.isascii(), line
            assert line[0].isupper(), line
            assert line[-1] in ".?", line
            assert not set(line) & set(":<>{}[]"), line  # these belong to the templates
            assert 1 <= len(re.findall(r"[.?](?: |$)", line)) <= 2, line

    def test_questions_and_imperatives_are_mixed(self, task):
        questions = sum(line.endswith("?") for line in load_descriptions(task))
        assert 30 <= questions <= 70

    def test_short_on_average(self, task):
        lengths = [len(line.split()) for line in load_descriptions(task)]
        assert 5 <= sum(lengths) / len(lengths) <= 12
        assert max(lengths) <= 20

    def test_openings_vary(self, task):
        openings = collections.Counter(
            line.split()[0] for line in load_descriptions(task) if "?" not in line
        )
        assert len(openings) >= 45
        assert openings.most_common(1)[0][1] <= 4

    def test_none_is_an_example_of_the_paper(self, task):
        printed = {
            line.strip().lower()
            for line in PAPER_EXAMPLES.replace("|", "\n").splitlines()
            if line.strip()
        }
        assert len(printed) == 22
        assert not printed & {line.lower() for line in load_descriptions(task)}

    def test_choice_is_a_function_of_its_arguments(self, task):
        ids = [f"{k:06d}" for k in range(300)]
        chosen = {i: choose_description(task, i, 0) for i in ids}
        assert {i: choose_description(task, i, 0) for i in reversed(ids)} == chosen
        assert {choose_description(task, i, 1) for i in ids} <= set(load_descriptions(task))
        assert sum(choose_description(task, i, 1) != chosen[i] for i in ids) > 250

    def test_every_description_is_used_about_equally(self, task):
        counts = collections.Counter(choose_description(task, str(k), 0) for k in range(5000))
        assert len(counts) == 100
        assert max(counts.values()) < 100  # 50 are expected


def test_tasks_do_not_share_descriptions():
    assert not set(load_descriptions("asr")) & set(load_descriptions("tts"))


def test_the_choice_is_the_same_today_and_tomorrow():
    """Pinned: another hash would change every data set that was ever built."""
    assert (
        load_descriptions("asr").index(choose_description("asr", "asr-000001", 0)) == PINNED["asr"]
    )
    assert (
        load_descriptions("tts").index(choose_description("tts", "tts-000001", 0)) == PINNED["tts"]
    )


def test_unknown_task():
    with pytest.raises(UserError, match="unknown task 'st': expected one of asr, tts"):
        load_descriptions("st")
