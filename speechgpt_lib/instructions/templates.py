"""The instruction formats: a unit–text pair or dialogue turn → a training row, prompt and answer.

A row is a sequence of parts: template text (in which `[Human]`, `<eoh>` and the like are markers),
content text (in which they are plain characters) and units.  It becomes text for people and for the
released JSONL, or ids for the language model, neither by way of the other: content can't forge a
marker.  Sources: the seed slides for `paper`, the released files for `release`.
**Differs from the paper**: the seed prints `<ea>` at the end of an answer, the release `<eoa>`; we
write `<eoa>` and read both.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.units.sequence import format_units

ChainFormat = Literal["speech_speech", "speech_text", "text_speech", "text_text"]
CHAIN_FORMATS: tuple[ChainFormat, ...] = get_args(ChainFormat)
MARKERS = ("[Human]", "[SpeechGPT]", "<eoh>", "<eos>", "<eoa>", "[tq]", "[ta]", "[ua]")
META_PREFIX = (
    "You are an AI assistant whose name is SpeechGPT.\n"
    "- SpeechGPT is a intrinsic cross-modal conversational language model that is developed by "
    "Fudan University.  SpeechGPT can understand and communicate fluently with human through "
    "speech or text chosen by the user.\n"
    "- It can perceive cross-modal inputs and generate cross-modal outputs.\n"
)
CROSS_MODAL = {
    "paper": ("[Human]:{description}. This is input: {input}<eoh>.[SpeechGPT]: ", "{output}<eos>"),
    "release": (
        "[Human]: {description} This is input: {input}<eoh> [SpeechGPT]: ",
        "{output}<eoa>",
    ),
}
# What follows the end marker, in the text form only: of a cross-modal row, and of a chain.
TEXT_TAIL, CHAIN_END = {"paper": "..", "release": " "}, "."
CHAIN = {
    "speech_speech": (
        "[Human]: This is a speech instruction: {instruction}. And your response should be speech. "
        "You can do it step by step. "
        "You can first transcribe the instruction and get the text Instruction. "
        "Then you can think about the instruction and get the text response. "
        "Last, you should speak the response aloud <eoh>. [SpeechGPT]: ",
        "[tq] {tq}; [ta] {ta}; [ua] {ua}<eoa>",
    ),
    "speech_text": (
        "[Human]: This is a speech instruction: {instruction}. And your response should be text. "
        "You can do it step by step. "
        "You can first transcribe the instruction and get the text instruction. "
        "Then you can think about the instruction and get the text response. "
        "<eoh>. [SpeechGPT]: ",
        "[tq] {tq}; [ta] {ta}<eoa>",
    ),
    "text_speech": (
        "[Human]: This is a text instruction: {instruction}. And your response should be speech. "
        "You can do it step by step. "
        "You can think about the instruction and get the text response. "
        "Then you should speak the response aloud <eoh>. [SpeechGPT]: ",
        "[ta] {ta}; [ua] {ua}<eoa>",
    ),
    "text_text": (
        "[Human]: This is a text instruction: {instruction}. And your response should be text. "
        "You can think about the instruction and get the text response. [SpeechGPT]: ",
        "[ta] {ta}<eoa>",
    ),
}
RELEASE_CHAIN = ("[Human]: {instruction}<eoh>. [SpeechGPT]: ", "{tq}; [ta] {ta}; [ua] {ua}<eoa>")


@dataclass(frozen=True)
class Part:
    """A piece of a row: `kind` template and text hold a string, units a (n,) array."""

    kind: Literal["template", "text", "units"]
    value: str | np.ndarray

    def __str__(self) -> str:
        return self.value if isinstance(self.value, str) else format_units(self.value)


@dataclass(frozen=True)
class Row:
    """A training row, or a bare prompt when `answer` is empty; `name` says where it comes from."""

    prompt: tuple[Part, ...]
    answer: tuple[Part, ...] = ()
    name: str = field(default="", compare=False)

    def text(self, tail: str = "") -> str:
        """The row as text; `tail` follows the end marker in the published text form."""
        return "".join(map(str, self.prompt + self.answer)) + tail


def cross_modal_row(
    task: str, description: str, text: str, units: np.ndarray, templates: str = "paper"
) -> Row:
    """An ASR row (units in, text out) or a TTS row (text in, units out)."""
    if task not in ("asr", "tts"):
        raise UserError(f"unknown task {task!r}: expected 'asr' or 'tts'")
    if templates not in CROSS_MODAL:
        raise UserError(f"unknown templates {templates!r}: choose {', '.join(CROSS_MODAL)}")
    if templates == "paper":  # its template brings a full stop of its own
        description = description.removesuffix(".")
    source, target = (units, text) if task == "asr" else (text, units)
    prompt, answer = CROSS_MODAL[templates]
    return Row(_parts(prompt, description=description, input=source), _parts(answer, output=target))


def chain_row(
    chain_format: ChainFormat,
    instruction_text: str,
    response_text: str = "",
    instruction_units: np.ndarray | None = None,
    response_units: np.ndarray | None = None,
    templates: str = "paper",
) -> Row:
    """A chain-of-modality row in one of four formats; the prompt alone without a response text."""
    if chain_format not in CHAIN:
        raise UserError(f"unknown chain format {chain_format!r}: choose {', '.join(CHAIN)}")
    if templates == "release" and chain_format != "speech_speech":
        raise UserError(f"the release has no template for {chain_format}, only for speech_speech")
    prompt, answer = RELEASE_CHAIN if templates == "release" else CHAIN[chain_format]
    spoken = chain_format.startswith("speech")
    instruction = instruction_units if spoken else instruction_text
    if spoken and (instruction is None or len(instruction) == 0):
        raise UserError(f"a {chain_format} row needs the units of its spoken instruction")
    head = _parts(prompt, instruction=instruction)
    if not response_text:
        return Row(head)
    return Row(head, _parts(answer, tq=instruction_text, ta=response_text, ua=response_units))


def _parts(template: str, **values: str | np.ndarray) -> tuple[Part, ...]:
    """Fill the `{slots}` of a template: a string becomes content text, an array units."""
    parts = {
        name: Part("text", value) if isinstance(value, str) else Part("units", np.asarray(value))
        for name, value in values.items()
    }
    return tuple(piece if isinstance(piece, Part) else parts[piece] for piece in _cut(template))


@functools.cache
def _cut(template: str) -> tuple[Part | str, ...]:
    """A template as parts and names of slots in turn."""
    pieces = enumerate(re.split(r"\{(\w+)\}", template))
    return tuple(piece if k % 2 else Part("template", piece) for k, piece in pieces if piece)
