"""Ids of a row and back, whatever its texts say: markers written in a text are plain characters there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import CHAIN_FORMATS, MARKERS, chain_row, cross_modal_row
from speechgpt_lib.language_model.parsing import parse_ids
from tests.builders import tiny_vocabulary

VOCABULARY = tiny_vocabulary(units=20)
# Texts of words, any characters, and the very strings that a text-form parser must refuse.
HOSTILE = (
    *MARKERS,
    "<sosp>",
    "<eosp>",
    "<12>",
    "; [ta] ",
    ". And your response should be text",
    "This is input: ",
    "<eoh>.[SpeechGPT]: ",
)
TEXT = (
    st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), min_size=1, max_size=6)
    .map("".join)
    .map(str.strip)
    .filter(bool)
)
UNITS = st.lists(st.integers(0, 19), min_size=1, max_size=12).map(np.array)
DESCRIPTION = TEXT.filter(lambda t: "This is input" not in t and not t.endswith("."))


def ids_of(row) -> list[int]:
    prompt, answer = VOCABULARY.encode_row(row)
    return prompt + answer


def same(found: dict, **wanted) -> None:
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name


@settings(deadline=None)
@given(
    DESCRIPTION, TEXT, UNITS, st.sampled_from(("asr", "tts")), st.sampled_from(("paper", "release"))
)
def test_cross_modal_rows_come_back(description, text, units, task, templates) -> None:
    found = parse_ids(
        ids_of(cross_modal_row(task, description, text, units, templates)), VOCABULARY, templates
    )
    same(found, task=task, description=description, text=text, units=units)


@settings(deadline=None)
@given(TEXT, TEXT, UNITS, UNITS, st.sampled_from((*CHAIN_FORMATS, "release")))
def test_chains_come_back(instruction, response, first, second, name) -> None:
    templates, kind = ("release", "speech_speech") if name == "release" else ("paper", name)
    found = parse_ids(
        ids_of(chain_row(kind, instruction, response, first, second, templates)), VOCABULARY
    )
    nothing = np.array([])
    heard, spoken = (
        (first if kind.startswith("speech") else nothing),
        (second if kind.endswith("speech") else nothing),
    )
    wanted = {
        "instruction": instruction,
        "response": response,
        "instruction_units": heard,
        "response_units": spoken,
    }
    same(found, format=kind, templates=templates, **wanted)


def test_ids_that_are_no_row() -> None:
    good = ids_of(cross_modal_row("tts", "Say it?", "a dog", np.array([1, 2])))
    end = VOCABULARY.marker("<eosp>")
    for ids in (
        [],
        good[:-1],
        good[3:],
        good + good,
        [i for i in good if i != end],
        [VOCABULARY.marker("[ta]"), *good],
    ):
        with pytest.raises(UserError, match="ids"):
            parse_ids(ids, VOCABULARY)
