"""Recordings → a voice: each is checked as it comes, and kept or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora, Judge
from speechgpt_lib.corpora.ffmpeg import BadAudio
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.run import Run
from speechgpt_lib.voices.checks import Check, check_recording, sentence_judge
from speechgpt_lib.voices.folder import read_folder
from speechgpt_lib.voices.removal import check_name
from speechgpt_lib.voices.store import Voice


@dataclass(frozen=True)
class Recorder:
    """Checks and keeps the recordings of one voice."""

    voice: Voice
    corpora: Corpora
    judge: Judge | None

    @classmethod
    def open(cls, voice: Voice, consent: bool, say: Callable[[str], None] = print) -> Recorder:
        """Ready to record; UserError without consent, or for a run that has no stage 2."""
        voice.run.require("stage2")  # a run that can't be adapted needs no recordings
        corpora = open_corpora(voice.run.recipe, voice.run.require("corpus").path, say)
        check_name(voice)
        voice.agree(consent)
        return cls(voice, corpora, sentence_judge(corpora, voice.run.recipe, say))

    def add(self, wave: np.ndarray, text: str) -> Check:
        """Check a wave (samples,) at 16 kHz that should say `text`; it is kept if nothing is
        wrong."""
        normal = self.corpora.normalise(text)
        if not normal:
            raise UserError(f"no words in {text!r}: give the sentence that was read")
        check = check_recording(wave, normal, self.judge)
        if not check.problems:
            self.voice.keep(normal, wave, check.facts())
        return check

    def add_folder(self, folder: Path, say: Callable[[str], None] = print) -> tuple[int, int]:
        """Check and keep the recordings of a folder; how many were kept, and refused.

        Raises UserError where none could be kept.
        """
        found, kept, refused, known = read_folder(folder), 0, [], _held_out(self.voice.run)
        held_out = 0
        for spoken in found:
            try:
                problems = self.add(read_audio(spoken.path), spoken.text).problems
            except BadAudio as error:
                problems = (f"{error.reason}: {error.detail}",)
            if problems:
                refused.append(f"{spoken.path.name}: {problems[0]}")
                say(f"refused  {refused[-1]}")
                continue
            kept += 1
            held_out += spoken.held_out or self.corpora.normalise(spoken.text) in known
        if not kept:
            more = f" ({len(refused)} in all)" if len(refused) > 1 else ""
            raise UserError(f"no recording of {folder} can be used: {refused[0]}{more}")
        if held_out:
            what = f"{held_out} of these sentences are held out from the run's training"
            say(f"note: {what}: a figure on held-out sentences would be flattered by them")
        return kept, len(refused)


def _held_out(run: Run) -> set[str]:
    """The held-out sentences of the run's corpus."""
    rows = read_utterances(run.require("corpus").path, where={"split": ["test", "test_voice"]})
    return {u.text for u in rows}
