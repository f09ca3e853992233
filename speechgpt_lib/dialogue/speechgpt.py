"""A trained run as something to talk to: speech or text in, speech or text out.

Prompts and answers are handled as ids from end to end; the spoken answer passes through the unit vocoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM

from speechgpt_lib import pipeline
from speechgpt_lib.corpora import world
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import generation
from speechgpt_lib.language_model.generation import Sampling
from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.language_model.stages import load_adapter
from speechgpt_lib.language_model.vocabulary import Vocabulary
from speechgpt_lib.runs.run import Run
from speechgpt_lib.units.inventory import UnitInventory, check_inventory
from speechgpt_lib.vocoder.synthesis import Vocoder


@dataclass(frozen=True)
class Reply:
    """What was understood, what is answered, and the answer as units (n,) and as a wave (samples,) at 16 kHz when it is spoken."""

    question_text: str
    answer_text: str
    answer_units: np.ndarray | None
    wave: np.ndarray | None
    wellformed: bool


@dataclass(frozen=True)
class SpeechGPT:
    """The cross-modal model (stage 2) transcribes and speaks; the conversational one (stage 3) answers."""

    inventory: UnitInventory
    vocabulary: Vocabulary
    cross_modal: LlamaForCausalLM
    conversational: LlamaForCausalLM
    vocoder: Vocoder

    @classmethod
    def load(cls, run: Run) -> SpeechGPT:
        """Load everything a finished run made; a missing step is named with the command that makes it."""
        stage2, stage3 = run.require(pipeline.STAGE2), run.require(pipeline.STAGE3)
        vocoder = Vocoder.load(run.require(pipeline.VOCODER).path)
        inventory = pipeline.inventory_of(run)
        cross_modal, vocabulary = load_model(stage2.path)
        check_inventory(vocabulary.inventory, inventory.id, "this run's unit inventory")
        conversational = load_adapter(load_model(stage2.path)[0], stage3.path)
        return cls(inventory, vocabulary, cross_modal, conversational, vocoder)

    def units(self, wave: np.ndarray) -> np.ndarray:
        """Speech (samples,) at 16 kHz → merged units (n,)."""
        return self.inventory.encode(wave)[0]

    def speak(self, units: np.ndarray, speed: float = 1.0) -> np.ndarray:
        """Merged units → wave (samples,) at 16 kHz."""
        return self.vocoder.synthesize(units, speed=speed)

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        return generation.transcribe(
            self.cross_modal, self.vocabulary, [self.units(wave) for wave in waves]
        )

    def say(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Text → (units, wave)."""
        return self.say_many([text])[0]

    def say_many(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        normal = [_require_words(text) for text in texts]
        spoken = generation.speak(self.cross_modal, self.vocabulary, normal)
        return [(units, self._wave(units)) for units in spoken]

    def ask(
        self, instruction: np.ndarray | str, reply: str = "speech", sampling: Sampling | None = None
    ) -> Reply:
        """Answer a wave (samples,) at 16 kHz or a text."""
        return self.ask_many([instruction], reply, sampling)[0]

    def ask_many(
        self,
        instructions: Sequence[np.ndarray | str],
        reply: str = "speech",
        sampling: Sampling | None = None,
    ) -> list[Reply]:
        asked = [_require_words(i) if isinstance(i, str) else self.units(i) for i in instructions]
        chains = generation.answer(
            self.conversational, self.vocabulary, asked, reply, sampling=sampling
        )
        return [
            self._reply(chain, instruction)
            for chain, instruction in zip(chains, asked, strict=True)
        ]

    def _reply(self, chain: generation.Chain, asked: np.ndarray | str) -> Reply:
        question = asked if isinstance(asked, str) else chain.tq
        wave = None if chain.ua is None else self._wave(chain.ua)
        return Reply(question, chain.ta, chain.ua, wave, chain.wellformed)

    def _wave(self, units: np.ndarray) -> np.ndarray:
        """Silence where the model spoke no unit at all, so that a poor answer can still be judged and counted."""
        return self.vocoder.synthesize(units) if len(units) else np.zeros(1600, np.float32)


def lab_note(text: str) -> str | None:
    """What a user should know when words of `text` lie outside the lab world, or None."""
    unknown = world.unknown_words(text)
    if not unknown:
        return None
    shown = ", ".join(unknown[:5])
    return f"the lab model knows {len(world.vocabulary())} words only; not among them: {shown}. Expect nonsense for these"


def _require_words(text: str) -> str:
    normal = world.normalise(text)
    if not normal:
        raise UserError(
            f"there are no words in {text!r}: give a sentence or the path of a sound file"
        )
    return normal


def default_run(name: str = "lab") -> Path:
    return Path("runs") / name
