"""The instruction formats: a unit–text pair or dialogue turn → a training row, prompt and answer.

A row becomes text for people and for the released JSONL, or ids for the language model, neither by
way of the other: content can't forge a marker.  `templates.yaml` has the words and their sources.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import yaml

from speechgpt_lib.errors import UserError
from speechgpt_lib.units.sequence import format_units

ChainFormat = Literal["speech_speech", "speech_text", "text_speech", "text_text"]
CHAIN_FORMATS: tuple[ChainFormat, ...] = get_args(ChainFormat)
MARKERS = ("[Human]", "[SpeechGPT]", "<eoh>", "<eos>", "<eoa>", "[tq]", "[ta]", "[ua]")
_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
META_PREFIX: str = _WORDS["meta_prefix"]
TEMPLATES: dict[str, dict[str, list[str]]] = _WORDS["templates"]
# What follows the end marker of a cross-modal row, in the text form only.
TEXT_TAIL = {name: group["cross_modal"][2] for name, group in TEMPLATES.items()}


@dataclass(frozen=True)
class Part:
    """A piece of a row: template text (in which `[Human]`, `<eoh>` and the like are markers),
    content text (in which they are plain characters) or units (n,)."""

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


def formats_of(templates: str) -> tuple[ChainFormat, ...]:
    """The formats of a chain that templates have: `paper` all four, `release` one for all."""
    return tuple(name for name in CHAIN_FORMATS if name in TEMPLATES[templates])


def cross_modal_row(
    task: str, description: str, text: str, units: np.ndarray, templates: str = "paper"
) -> Row:
    """An ASR row (units in, text out) or a TTS row (text in, units out)."""
    if task not in ("asr", "tts"):
        raise UserError(f"unknown task {task!r}: expected 'asr' or 'tts'")
    if templates == "paper":  # its template brings a full stop of its own
        description = description.removesuffix(".")
    source, target = (units, text) if task == "asr" else (text, units)
    values = {"description": description, "input": source, "output": target}
    return _row(templates, "cross_modal", values)


def chain_row(
    chain_format: ChainFormat,
    instruction_text: str,
    response_text: str = "",
    instruction_units: np.ndarray | None = None,
    response_units: np.ndarray | None = None,
    templates: str = "paper",
) -> Row:
    """A chain-of-modality row in one of four formats; the prompt alone without a response text."""
    spoken = chain_format.startswith("speech")
    if spoken and (instruction_units is None or len(instruction_units) == 0):
        raise UserError(f"a {chain_format} row needs the units of its spoken instruction")
    values = {"instruction": instruction_units if spoken else instruction_text}
    values |= {"tq": instruction_text, "ta": response_text, "ua": response_units}
    row = _row(templates, chain_format, values)
    return row if response_text else replace(row, answer=())


def _row(templates: str, name: str, values: dict[str, str | np.ndarray | None]) -> Row:
    """Fills the slots of a template: a string becomes content text, an array units."""
    if templates not in TEMPLATES:
        raise UserError(f"unknown templates {templates!r}: choose {', '.join(TEMPLATES)}")
    if name not in (known := TEMPLATES[templates]):
        raise UserError(f"{templates} has no template for {name!r}, only for {', '.join(known)}")
    content = {
        slot: Part("text", value) if isinstance(value, str) else Part("units", np.asarray(value))
        for slot, value in values.items()
    }
    prompt, answer, _ = known[name]
    return Row(*(tuple(content.get(p, p) for p in _cut(half)) for half in (prompt, answer)))


@functools.cache
def _cut(template: str) -> tuple[Part | str, ...]:
    """A template as parts and names of slots in turn."""
    pieces = enumerate(re.split(r"\{(\w+)\}", template))
    return tuple(piece if k % 2 else Part("template", piece) for k, piece in pieces if piece)
