"""A trained run as something to talk to: speech or text in, speech or text out.

Prompts and answers are ids from end to end; the spoken answer passes through the unit vocoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import transformers

from speechgpt_lib.corpora.audio import nothing_heard
from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import generation
from speechgpt_lib.language_model.adapters import attach_adapter, folder_id
from speechgpt_lib.language_model.generation import Chain, Sampling, Spoken, Written
from speechgpt_lib.language_model.inference import load_to_answer
from speechgpt_lib.language_model.vocabulary import Vocabulary
from speechgpt_lib.recipes.schema import GenerationSettings
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.inventory import UnitInventory, check_inventory
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.voices.adaptation import Adapted
from speechgpt_lib.voices.store import Voice

if TYPE_CHECKING:
    from peft import PeftModel

Question = np.ndarray | str  # a wave (samples,) at 16 kHz, or a text


class Reply(NamedTuple):
    """What was understood and answered; in speech units (n,) and a wave (samples,) at 16 kHz."""

    question_text: str
    answer_text: str
    answer_units: np.ndarray | None
    wave: np.ndarray | None
    wellformed: bool
    cut: bool  # it met its longest length before it came to an end
    nothing_heard: str | None = None  # why, where the sound holds no question: then all is empty


@dataclass(frozen=True)
class SpeechGPT:
    """The stage-2 model transcribes and speaks; with the adapter of stage 3 on it, it answers."""

    inventory: UnitInventory
    vocabulary: Vocabulary
    model: PeftModel
    vocoder: Vocoder
    corpora: Corpora
    limits: GenerationSettings
    templates: str = "paper"

    @classmethod
    def load(cls, run: Run, voice: str | None = None) -> SpeechGPT:
        """What a finished run made; an error names a missing step and the command that makes it.

        voice: the name of one that the run was adapted to (notebook 11).
        """
        names = ("stage2", "stage3", "vocoder", "inventory")
        stage2, stage3, vocoder, units = (run.require(name).path for name in names)
        recipe, corpus = run.recipe, run.find("corpus")
        weights, device = recipe.inference.weights, resolve_device(recipe.device)
        if voice is None:
            inventory = UnitInventory.load(units)
            base, vocabulary = load_to_answer(stage2, weights, device)
        else:
            chosen = Voice(run, voice)
            adapted = Adapted.load(chosen)
            inventory, vocabulary = adapted.inventory, adapted.vocabulary
            base = adapted.model.to(device)
            vocoder = chosen.vocoder if chosen.speaks else vocoder
        check_inventory(vocabulary.inventory, inventory.id, "this run's unit inventory")
        corpora = open_corpora(recipe, corpus and corpus.path)
        facts = (corpora, recipe.generation, recipe.instructions.templates)
        # The adapter was trained on the run's own stage 2; an adapted one is near it.
        known = {"trust": True} if voice else {"identity": folder_id(stage2)}
        model = attach_adapter(base, stage3, **known)
        return cls(inventory, vocabulary, model, Vocoder.load(vocoder), *facts)

    @property
    def conversational(self) -> transformers.PreTrainedModel:
        """The model of stage 3, which answers."""
        return self.model.get_base_model()

    @contextmanager
    def cross_modal(self) -> Iterator[transformers.PreTrainedModel]:
        """Within the block, the model of stage 2: the same weights, the adapter switched off."""
        with self.model.disable_adapter():
            yield self.model.get_base_model()

    def units(self, wave: np.ndarray) -> np.ndarray:
        """Speech (samples,) at 16 kHz → merged units (n,)."""
        return self.inventory.encode(wave)[0]

    def speak(self, units: np.ndarray, speed: float = 1.0) -> np.ndarray:
        """Merged units (n,) → wave (samples,) at 16 kHz."""
        return self.vocoder.synthesize(units, speed=speed)

    def transcribe_many(self, waves: Sequence[np.ndarray]) -> list[Written]:
        """Speech (samples,) at 16 kHz → its text; "" where nothing is heard."""
        why, limit = [nothing_heard(wave) for wave in waves], self.limits.transcript
        units = [self.units(wave) for wave, no in zip(waves, why, strict=True) if not no]
        with self.cross_modal() as model:
            told = generation.transcribe(model, self.vocabulary, units, limit, self.templates)
        found = iter(told)
        return [Written("", False, no) if no else next(found) for no in why]

    def say(self, text: str) -> Spoken:
        """Speak a text."""
        return self.say_many([text])[0]

    def say_many(self, texts: Sequence[str]) -> list[Spoken]:
        """As `say`, several texts at once.  Raises UserError for a text without words."""
        normal, limit = [self._words(text) for text in texts], self.limits.speech
        with self.cross_modal() as model:
            spoken = generation.speak(model, self.vocabulary, normal, limit, self.templates)
        return [said._replace(wave=self._wave(said.units)) for said in spoken]

    def ask(
        self, question: Question, reply: str = "speech", sampling: Sampling | None = None
    ) -> Reply:
        """Answer a question; `reply` is "speech" or "text"."""
        return self.ask_many([question], reply, sampling)[0]

    def ask_many(
        self, questions: Sequence[Question], reply: str = "speech", sampling: Sampling | None = None
    ) -> list[Reply]:
        """As `ask`, several questions at once; where nothing is heard, nothing is answered."""
        why = [None if isinstance(q, str) else nothing_heard(q) for q in questions]
        heard = [q for q, no in zip(questions, why, strict=True) if not no]
        asked = [self._words(q) if isinstance(q, str) else self.units(q) for q in heard]
        chains, replies = self.chains(asked, reply, sampling), []
        for one, chain in zip(asked, chains, strict=True):
            text = one if isinstance(one, str) else chain.tq
            wave = None if chain.ua is None else self._wave(chain.ua)
            replies.append(Reply(text, chain.ta, chain.ua, wave, chain.wellformed, chain.cut))
        found = iter(replies)
        return [Reply("", "", None, None, False, False, no) if no else next(found) for no in why]

    def chains(
        self, asked: Sequence[str | np.ndarray], reply: str, sampling: Sampling | None = None
    ) -> list[Chain]:
        """What the model writes after questions in words or units (n,), without any sound."""
        limit = self.limits.spoken_answer if reply == "speech" else self.limits.written_answer
        given = (asked, limit, reply, self.templates, sampling)
        return generation.answer(self.conversational, self.vocabulary, *given)

    def _wave(self, units: np.ndarray) -> np.ndarray:
        """Silence where the model spoke no unit, so that a poor answer can still be judged."""
        return self.vocoder.synthesize(units) if len(units) else np.zeros(1600, np.float32)

    def note(self, text: str) -> str | None:
        """What a user should know when the corpora never say words of `text`, or None."""
        unknown = ", ".join(self.corpora.unknown_words(text)[:5])
        said = f"these words were in no sentence that the model was trained on: {unknown}"
        return f"{said}. Expect nonsense for them" if unknown else None

    def _words(self, text: str) -> str:
        """The text in the corpora's spelling; refuses one without words."""
        normal = self.corpora.normalise(text)
        if normal:
            return normal
        raise UserError(f"no words in {text!r}: give a sentence or the path of a sound file")
