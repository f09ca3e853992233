"""The dialogue: one set of weights; its adapter is off to listen and speak, on to answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt_lib.dialogue.speechgpt import SpeechGPT
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import generation
from speechgpt_lib.language_model.adapters import add_lora, attach_adapter, save_adapter
from speechgpt_lib.recipes.schema import GenerationSettings, LoraSettings
from tests.builders import lab_corpora, noise, tiny_inventory, tiny_language_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
NEW = range(VOCABULARY.text_size, VOCABULARY.size)
LAB = lab_corpora()
LIMITS = GenerationSettings(transcript=12, speech=20, spoken_answer=24, written_answer=16)
IDS = torch.tensor([[1, 5, 9, VOCABULARY.text_size + 3, 40]])


class Silence:
    """A vocoder that needs no training: 320 samples a unit."""

    def synthesize(self, units: np.ndarray, speed: float = 1.0) -> np.ndarray:
        return np.zeros(320 * len(units), np.float32)


def base():
    return tiny_language_model(VOCABULARY)


@pytest.fixture
def speechgpt(tmp_path: Path) -> SpeechGPT:
    adapted = add_lora(base(), LoraSettings(rank=2), seed=0, new_tokens=NEW)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    save_adapter(adapted, tmp_path)
    adapted = attach_adapter(base(), tmp_path)
    return SpeechGPT(tiny_inventory(), VOCABULARY, adapted, Silence(), LAB, LIMITS)


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


def test_the_adapter_is_off_to_listen_and_on_to_answer(speechgpt) -> None:
    answering = logits(speechgpt.conversational)
    with speechgpt.cross_modal() as model:
        assert torch.equal(logits(model), logits(base())), "bit for bit the stage-2 model"
        assert model is speechgpt.conversational, "one set of weights"
    assert torch.equal(logits(speechgpt.conversational), answering)
    assert not torch.equal(answering, logits(base()))


def test_it_is_on_again_after_an_error(speechgpt) -> None:
    answering = logits(speechgpt.conversational)
    with pytest.raises(ZeroDivisionError), speechgpt.cross_modal():
        raise ZeroDivisionError
    assert torch.equal(logits(speechgpt.conversational), answering)


def test_each_task_asks_its_own_model(speechgpt) -> None:
    waves = [noise(0.5, 0), noise(0.7, 1)]
    heard = [speechgpt.units(wave) for wave in waves]
    assert speechgpt.transcribe_many(waves) == generation.transcribe(base(), VOCABULARY, heard, 12)
    said = speechgpt.say("A dog!")
    spoken = generation.speak(base(), VOCABULARY, ["a dog"], 20)[0]
    assert said.units.tolist() == spoken.units.tolist() and said.cut == spoken.cut
    assert len(said.wave) == (320 * len(said.units) or 1600)
    chain = generation.answer(speechgpt.conversational, VOCABULARY, ["a dog"], 16, "text")[0]
    reply = speechgpt.ask("A dog?", reply="text")
    assert (reply.question_text, reply.answer_text) == ("a dog", chain.ta) and reply.wave is None


def test_an_answer_that_meets_its_limit_is_reported_as_cut(speechgpt, monkeypatch) -> None:
    asked: list[int] = []

    def endless(model, vocabulary, prompts, limit, sampling=None):
        asked.append(limit)
        return [[VOCABULARY.text_size + 3] * limit for _ in prompts]

    monkeypatch.setattr(generation, "generate", endless)
    assert speechgpt.transcribe_many([noise(0.5)])[0].cut and speechgpt.say("a dog").cut
    assert speechgpt.ask("a dog").cut and speechgpt.ask("a dog", reply="text").cut
    assert asked == [12, 20, 24, 16], "the recipe's limits"
    ended = [VOCABULARY.marker("<eoa>")]
    monkeypatch.setattr(
        generation, "generate", lambda m, v, prompts, n, s=None: [ended] * len(prompts)
    )
    assert not speechgpt.ask("a dog").cut and not speechgpt.say("a dog").cut


def test_weights_are_held_once(speechgpt) -> None:
    one = sum(p.numel() for p in base().parameters())
    own = {p.data_ptr(): p for p in speechgpt.model.parameters()}
    assert sum(p.numel() for p in own.values()) < 1.5 * one, "the base, and small adapters"
    with speechgpt.cross_modal() as model:
        assert {p.data_ptr() for p in model.parameters()} <= own.keys()


@pytest.mark.parametrize("reply", ["text", "speech"])
def test_nothing_heard_gets_no_answer_and_leaves_the_others_theirs(speechgpt, reply) -> None:
    silent, constant, quiet = np.zeros(8000), np.full(8000, 0.3), 1e-5 * noise(0.5)
    waves = [np.float32(silent), noise(0.5), np.float32(constant), noise(0.7), np.float32(quiet)]
    told, replies = speechgpt.transcribe_many(waves), speechgpt.ask_many(waves, reply)
    for k, start in enumerate(("silent", None, "silent", None, "silent")):
        for one in (told[k], replies[k]):
            assert (one.nothing_heard or "none").startswith(start or "none")
        if start:
            assert (told[k].text, replies[k].answer_text, replies[k].wellformed) == ("", "", False)
            assert replies[k].wave is None and replies[k].answer_units is None
    assert [told[1], told[3]] == speechgpt.transcribe_many([waves[1], waves[3]])
    alone = speechgpt.ask_many([waves[1], waves[3]], reply)
    assert [r.answer_text for r in (replies[1], replies[3])] == [r.answer_text for r in alone]
    assert speechgpt.transcribe_many([waves[0]])[0].nothing_heard, "no other in the batch"


def test_a_text_without_words_is_refused(speechgpt) -> None:
    with pytest.raises(UserError, match="no words in '...'"):
        speechgpt.say("...")
    with pytest.raises(UserError, match="no words"):
        speechgpt.ask("?!")
