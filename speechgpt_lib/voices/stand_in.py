"""A stand-in for a person, for headless runs: a voice that the run never heard.

The natural voice joe, where he is installed; else one of eSpeak's, whose pitch and rate are
changed.  Figures of it are real, but a person is harder, and eSpeak's voices are no task for `lab`.
"""

from __future__ import annotations

import json
from pathlib import Path

from speechgpt_lib.corpora.audio import write_audio
from speechgpt_lib.corpora.lab import speak_all
from speechgpt_lib.corpora.natural import NATURAL_VOICES, is_installed
from speechgpt_lib.corpora.speech import VOICES
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.artefacts import write_text

RATE, PITCH = 155, 1.25  # words a minute; times the voice's own


def stand_in_voice(recipe: Recipe) -> str:
    """joe where he is installed and not the voice that answers; else the eSpeak voice that the
    recipe keeps out of training, or any where it has no lab corpus."""
    lab = recipe.lab
    if is_installed() and not (lab and lab.target_voice in NATURAL_VOICES):
        return NATURAL_VOICES[0]
    return lab.held_out_voice if lab else VOICES[-1]


def write_stand_in(folder: Path, texts: list[str], recipe: Recipe) -> str:
    """Write recordings of the stand-in reading `texts`, with items.jsonl; returns who it is."""
    voice = stand_in_voice(recipe)
    plan = [
        Utterance(f"{k:04d}", text, "", "", voice, "", rate=RATE, pitch=PITCH)
        for k, text in enumerate(texts)
    ]
    lines = []
    for u in speak_all(plan):
        write_audio(folder / f"{u.id}.wav", u.wave)
        lines.append(json.dumps({"path": f"{u.id}.wav", "text": u.text, "voice": voice}) + "\n")
    write_text(folder / "items.jsonl", "".join(lines))
    return f"{voice}, a natural voice" if voice in NATURAL_VOICES else f"eSpeak's {voice}, changed"
