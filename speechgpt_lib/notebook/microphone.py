"""A widget that records prompted sentences in the browser and checks each as it comes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anywidget
import traitlets

from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.errors import UserError
from speechgpt_lib.voices.recording import Recorder


class Microphone(anywidget.AnyWidget):
    """Shows one prompt after the other; a recording that passes its checks is kept."""

    _esm = Path(__file__).with_suffix(".js")
    prompt = traitlets.Unicode().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)

    def __init__(self, recorder: Recorder, prompts: list[str]):
        kept = {record["text"] for record in recorder.voice.records()}
        self.recorder, self.count = recorder, len(prompts)
        self.left = [text for text in prompts if recorder.corpora.normalise(text) not in kept]
        super().__init__(prompt=self._next(), message=self._progress())
        self.on_msg(self._told)

    def _next(self) -> str:
        return self.left[0] if self.left else ""

    def _progress(self) -> str:
        done = self.count - len(self.left)
        how = "press Record, read the sentence, press Stop" if self.left else "all are recorded"
        return f"{done} of {self.count} sentences: {how}."

    def _told(self, widget: object, content: dict, buffers: list) -> None:
        message = self.message
        if content.get("kind") == "skip" and self.left:
            self.left.append(self.left.pop(0))
            message = self._progress()
        elif content.get("kind") == "recording" and self.left:
            message = self._keep(bytes(buffers[0]), content.get("type", ""))
        with self.hold_sync():  # the page never shows "Kept" above the sentence that was kept
            self.message, self.prompt = message, self._next()

    def _keep(self, data: bytes, kind: str) -> str:
        """Check and keep what the browser recorded; what is said about it."""
        folder = self.recorder.voice.path  # nothing of a voice lies elsewhere
        suffix = ".mp4" if "mp4" in kind else ".ogg" if "ogg" in kind else ".webm"
        try:
            with tempfile.NamedTemporaryFile(suffix=suffix, dir=folder) as file:
                file.write(data)
                file.flush()
                wave = read_audio(file.name)
            check = self.recorder.add(wave, self.left[0])
        except UserError as error:
            return f"Not kept: {error}".replace(getattr(file, "name", "\0"), "the recording")
        if check.problems:
            return f"Not kept: {check.problems[0]}."
        self.left.pop(0)
        level = f"{check.level_db:.0f} dB, {check.noise_db:.0f} dB above the noise"
        return f"Kept ({level}). {self._progress()}"
