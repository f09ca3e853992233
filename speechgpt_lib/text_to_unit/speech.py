"""Text → speech → units, as SpeechGPT's authors recommend: a synthesiser and the unit extractor.

Same calls as `TextToUnit`, so a recipe can choose.  The synthesiser is eSpeak NG, as in the lab
corpus, or any program that reads a text and writes a sound file.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired, run

import numpy as np

from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.corpora.lab import speak_all
from speechgpt_lib.corpora.speech import NATURAL_VOICES, check_voice
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.errors import UserError
from speechgpt_lib.units.inventory import UnitInventory

TIMEOUT_S = 120


@dataclass(frozen=True)
class SpeechVoicing:
    """Texts → speech → merged units of the inventory `inventory` (its id)."""

    name: str
    inventory: str
    speak: Callable[[Sequence[str]], list[np.ndarray]]
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    def generate(self, texts: Sequence[str], batch_size: int = 256) -> list[np.ndarray]:
        """Texts → merged units (n,) each."""
        batches = (texts[k : k + batch_size] for k in range(0, len(texts), batch_size))
        return [self.encode(wave)[0] for batch in batches for wave in self.speak(batch)]

    def refuses(self, text: str) -> str | None:
        """Why `text` can't be voiced, or None."""
        return None if any(map(str.isalnum, text)) else "it has no letter or digit to speak"


def speech_voicing(synthesiser: str, inventory: UnitInventory, voice: str) -> SpeechVoicing:
    """`synthesiser`: "espeak" (the lab's own, in `voice`, 175 words a minute) or a command that
    reads the text.

    {wav} stands where the sound file goes: piper --model en_US-lessac.onnx --output_file {wav}
    """

    def espeak(texts: Sequence[str]) -> list[np.ndarray]:
        plan = [Utterance("", text, "", "answer", voice, "train", rate=175) for text in texts]
        return [utterance.wave for utterance in speak_all(plan)]

    def program(texts: Sequence[str]) -> list[np.ndarray]:
        return [_command(synthesiser, text) for text in texts]

    if synthesiser == "espeak":
        check_voice(voice)
        name = f"Piper, voice {voice}" if voice in NATURAL_VOICES else f"eSpeak NG, voice {voice}"
        speak = espeak
    elif "{wav}" in synthesiser:
        name, speak = synthesiser.split()[0], program
    else:
        raise UserError(f"synthesiser {synthesiser!r} has no {{wav}}, where the sound file goes")
    return SpeechVoicing(name, inventory.id, speak, inventory.encode)


def _command(command: str, text: str) -> np.ndarray:
    """What a program says of `text`: float32 samples (n,) at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        call = [part.replace("{wav}", str(wav)) for part in shlex.split(command)]
        try:
            done = run(call, input=text, text=True, capture_output=True, timeout=TIMEOUT_S)
        except FileNotFoundError:
            raise UserError(f"no program {call[0]!r}: install it or choose espeak") from None
        except TimeoutExpired:
            what = f"took over {TIMEOUT_S} s for {text[:60]!r}: does it wait for something?"
            raise UserError(f"{call[0]} {what}") from None
        if done.returncode or not wav.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            what = f"no sound of {text[:60]!r} (exit code {done.returncode})"
            raise UserError(f"{call[0]} made {what}: {said[-1][:200]}")
        return read_audio(wav)
