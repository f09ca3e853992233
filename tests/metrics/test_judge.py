"""The speech judge hears eSpeak's sentences and nothing in bad audio, whatever it heard before."""

import math
import random
import re
import sys
from collections import defaultdict

import numpy as np
import pytest

from speechgpt_lib.corpora import world
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics import judge
from speechgpt_lib.metrics.unit_errors import wer
from tests.builders import spoken

SLOTS = {
    "color": ("red", "green"),
    "animal": ("dog", "horse", "bird"),
    "number": ("one", "two", "seven"),
}
TEMPLATES = ["the {animal} is {color}", "{number} plus {number} is {number}"]
GRAMMAR = judge.grammar_from_templates(
    TEMPLATES, SLOTS, ["what is {number} plus {number}"], ["", "please tell me"]
)
SENTENCES = [
    "the dog is red",
    "the horse is green",
    "seven plus one is two",
    "what is one plus two",
    "please tell me what is two plus seven",
]


def world_judge() -> judge.SpeechJudge:
    """The judge of all that the lab's world can say."""
    questions, answers = zip(*world.QUESTIONS.values(), strict=True)
    sentences = [*world.STATEMENTS, *answers]
    return judge.template_judge(
        judge.grammar_from_templates(sentences, world.SLOTS, questions, world.OPENINGS)
    )


@pytest.fixture(scope="module")
def waves():
    return spoken(*SENTENCES)


@pytest.fixture(scope="module")
def template():
    return judge.template_judge(GRAMMAR)


@pytest.fixture(scope="module")
def bigram():
    rng = random.Random(0)
    templates = [
        *TEMPLATES,
        "please tell me what is {number} plus {number}",
        "what is {number} plus {number}",
    ]
    return judge.bigram_judge([world.fill(rng.choice(templates), rng) for _ in range(400)])


def test_template_judge_hears_clean_speech(template, waves):
    assert template.transcribe_many(waves) == SENTENCES


def test_bigram_judge_hears_clean_speech(bigram, waves):
    assert wer(SENTENCES, bigram.transcribe_many(waves)) <= 0.15


def test_the_past_does_not_matter(template, waves):
    alone = [judge.template_judge(GRAMMAR).transcribe(wave) for wave in waves[:2]]
    assert [template.transcribe(wave) for wave in (*waves[::-1], *waves[:2])][-2:] == alone
    assert template.transcribe_many(waves[::-1]) == template.transcribe_many(waves)[::-1]


def test_level_does_not_matter(template, waves):
    assert template.transcribe(0.01 * waves[0]) == SENTENCES[0]
    assert template.transcribe(waves[0].astype(np.float64)) == SENTENCES[0]


def test_judges_differ_in_what_they_allow(template, bigram):
    (wave,) = spoken("red is the dog")
    assert template.transcribe(wave) == "", "no template makes this sentence"
    assert bigram.transcribe(wave).endswith("is the dog")


def test_noise_and_half_sentences_are_no_words_to_the_template_judge(template, waves):
    assert template.transcribe(np.random.default_rng(0).standard_normal(32000)) == ""
    assert template.transcribe(waves[0][: len(waves[0]) // 2]) == ""


@pytest.mark.parametrize("noise", [0.03, 0.06])
def test_in_noise_it_hears_whole_sentences_or_nothing(noise):
    template = world_judge()
    slots = {name: f"(?:{'|'.join(words)})" for name, words in world.SLOTS.items()}
    templates = [*world.STATEMENTS, *(text for pair in world.QUESTIONS.values() for text in pair)]
    whole = re.compile(f"(?:{'|'.join(text.format(**slots) for text in templates)})?")
    sentences = (
        "robert has the tiger",
        "the cow is black",
        "maria has the monkey",
        "david is in the river",
    )

    def noisy(wave):
        whisper = np.random.default_rng(1).standard_normal(len(wave), dtype=np.float32)
        return wave + noise * whisper

    heard = template.transcribe_many([noisy(wave) for wave in spoken(*sentences)])
    assert all(whole.fullmatch(text) for text in heard) and any(heard)


@pytest.mark.parametrize("samples", [0, 1, 500, 1599, 1600, 32000])
def test_silence_and_short_audio_are_no_words(template, bigram, samples):
    for wave in (np.zeros(samples, dtype=np.float32), np.full(samples, 1e-6)):
        assert template.transcribe(wave) == bigram.transcribe(wave) == ""


def test_a_click_does_not_break_the_judge(template):
    click = np.zeros(1600)
    click[800] = 1
    assert isinstance(template.transcribe(click), str)


@pytest.mark.parametrize(
    ("wave", "message"),
    [(np.zeros((16000, 2)), r"\(16000, 2\)"), (np.full(16000, np.nan), "NaN or infinity")],
)
def test_what_is_no_waveform_is_refused(template, wave, message):
    with pytest.raises(ValueError, match=message):
        template.transcribe(wave)


def test_grammar_text():
    assert "<animal> = ( dog | horse | bird );" in GRAMMAR
    assert "<an_opening> = ( please tell me );" in GRAMMAR, "the empty opening is skipped"
    assert "the <animal> is <color>" in GRAMMAR
    assert "[ <an_opening> ] what is <number> plus <number>" in GRAMMAR
    assert "opening" not in judge.grammar_from_templates(["hello"], {}, ["good morning"], [""])


def test_grammar_refusals():
    with pytest.raises(ValueError, match="planet"):
        judge.grammar_from_templates(["the {planet}"], SLOTS)
    with pytest.raises(ValueError, match="at least one template"):
        judge.grammar_from_templates([], SLOTS)


def test_the_whole_lab_world_can_be_heard():
    anything = judge.bigram_judge(["dog"], world.vocabulary())
    assert anything.transcribe(np.zeros(16000)) == world_judge().transcribe(np.zeros(16000)) == ""


def test_unheard_of_words_are_named():
    with pytest.raises(UserError, match="cannot hear qwxz"):
        judge.template_judge(judge.grammar_from_templates(["the {animal} qwxz"], SLOTS))
    with pytest.raises(UserError, match="cannot hear blorp, qwxz"):
        judge.bigram_judge(["the blorp"], words=["qwxz"])


def test_without_pocketsphinx(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[judge\]'"):
        judge.template_judge(GRAMMAR)


def read_arpa(text):
    """Unigram probabilities, back-off weights and bigram probabilities."""
    unigrams, backoff, bigrams = {}, {}, defaultdict(dict)
    for line in text.splitlines():
        parts = line.split()
        if len(parts) != 3 or not parts[0].startswith(("-", "0")):
            continue
        if parts[2].startswith(("-", "0")):
            unigrams[parts[1]], backoff[parts[1]] = 10 ** float(parts[0]), 10 ** float(parts[2])
        else:
            bigrams[parts[1]][parts[2]] = 10 ** float(parts[0])
    return unigrams, backoff, bigrams


def test_bigram_model_sums_to_one_after_every_word():
    text = judge.bigram_arpa(
        ["the dog is red", "the dog is green", "the bird", "", "red"], words=["dog", "paris"]
    )
    unigrams, backoff, bigrams = read_arpa(text)
    assert f"ngram 1={len(unigrams)}" in text
    assert f"ngram 2={sum(map(len, bigrams.values()))}" in text
    assert unigrams.pop("<s>") == pytest.approx(0)
    assert sum(unigrams.values()) == pytest.approx(1, abs=1e-4)
    assert set(unigrams) == {"the", "dog", "is", "red", "green", "bird", "paris", "</s>"}
    for history, weight in backoff.items():
        if history == "</s>":
            continue
        total = sum(bigrams[history].get(word, weight * p) for word, p in unigrams.items())
        assert total == pytest.approx(1, abs=1e-4), history


def test_bigram_probability_by_hand():
    unigrams, backoff, bigrams = read_arpa(judge.bigram_arpa(["a b", "a b", "a a"]))
    # Words, with one added: a 5, b 3, </s> 4 of 12.  After a come b twice, a once, </s> once: three
    # kinds.
    assert unigrams["a"] == pytest.approx(5 / 12, abs=1e-4)
    assert backoff["a"] == pytest.approx(3 / (4 + 3), abs=1e-4)
    assert bigrams["a"]["b"] == pytest.approx((2 + 3 * 3 / 12) / (4 + 3), abs=1e-4)
    assert math.isclose(backoff["b"], 1 / (2 + 1), rel_tol=1e-3)


def test_no_sentence_no_model():
    with pytest.raises(ValueError, match="at least one word"):
        judge.bigram_arpa(["", " "])
