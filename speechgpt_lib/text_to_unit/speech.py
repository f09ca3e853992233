"""The other way from text to units, which the authors of SpeechGPT recommend: a synthesiser speaks, and the unit extractor listens.

Same calls as `TextToUnit`, so a recipe can choose.  The synthesiser is eSpeak NG, as in the lab corpus, or any program that reads a text
and writes a sound file.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.corpora.lab import speak_all
from speechgpt_lib.corpora.speech import VOICES
from speechgpt_lib.errors import UserError
from speechgpt_lib.units.inventory import UnitInventory

ESPEAK = "espeak"
RATE = 175  # words a minute, the target voice's of the lab corpus
TIMEOUT_S = 120


@dataclass(frozen=True)
class SpeechVoicing:
    """Texts → speech → merged units of `units`."""

    name: str
    speak: Callable[[Sequence[str]], list[np.ndarray]]
    units: UnitInventory

    @property
    def inventory(self) -> str:
        return self.units.id

    def generate(self, texts: Sequence[str], batch_size: int = 256) -> list[np.ndarray]:
        """Texts → merged units (n,) each."""
        found: list[np.ndarray] = []
        for start in range(0, len(texts), batch_size):
            found += [
                self.units.encode(wave)[0] for wave in self.speak(texts[start : start + batch_size])
            ]
        return found

    def refuses(self, text: str) -> str | None:
        return (
            None
            if any(character.isalnum() for character in text)
            else "it has no letter or digit to speak"
        )


def speech_voicing(synthesiser: str, inventory: UnitInventory, voice: str) -> SpeechVoicing:
    """`synthesiser` is "espeak" (in `voice`) or a command with {wav} where the sound file goes; it gets the text on standard input.

    Such as: piper --model en_US-lessac-medium.onnx --output_file {wav}
    """
    if synthesiser == ESPEAK:
        if voice not in VOICES:
            raise UserError(f"unknown voice {voice!r}: choose one of {', '.join(VOICES)}")
        return SpeechVoicing(
            f"eSpeak NG, voice {voice}", lambda texts: _espeak(texts, voice), inventory
        )
    if "{wav}" not in synthesiser:
        raise UserError(
            f"synthesiser {synthesiser!r} has no {{wav}}: put it where the sound file goes, the text comes on standard input"
        )
    return SpeechVoicing(
        synthesiser.split()[0],
        lambda texts: [_command(synthesiser, text) for text in texts],
        inventory,
    )


def _espeak(texts: Sequence[str], voice: str) -> list[np.ndarray]:
    blank = {
        "id": "",
        "answer": "",
        "kind": "answer",
        "voice": voice,
        "rate": RATE,
        "pitch": 1.0,
        "split": "train",
    }
    return [utterance.wave for utterance in speak_all([blank | {"text": text} for text in texts])]


def _command(command: str, text: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        arguments = [part.replace("{wav}", str(wav)) for part in shlex.split(command)]
        try:
            done = subprocess.run(
                arguments,
                input=text,
                text=True,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            raise UserError(
                f"no program {arguments[0]!r}: install it, or set instructions.synthesiser to espeak"
            ) from None
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{arguments[0]} took more than {TIMEOUT_S} s for {text[:60]!r}: does it wait for something?"
            ) from None
        if done.returncode or not wav.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise UserError(
                f"{arguments[0]} made no sound of {text[:60]!r} (exit code {done.returncode}): {said[-1][:200]}"
            )
        return read_audio(wav)
