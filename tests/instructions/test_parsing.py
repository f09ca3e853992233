"""Rows in text form and back: every template, and what is refused and why."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.instructions.parsing import BadRow, marker_in, parse_row
from speechgpt_lib.instructions.records import Record
from speechgpt_lib.instructions.templates import (
    CHAIN_FORMATS,
    TEXT_TAIL,
    chain_row,
    cross_modal_row,
)

U, V = np.array([12, 7]), np.array([3])
PLAIN = st.text(min_size=1, max_size=60).filter(
    lambda t: t.strip() and not marker_in(t) and "[" not in t and "<" not in t
)
UNITS = st.lists(st.integers(0, 99), min_size=1, max_size=20).map(np.array)
DESCRIPTION = PLAIN.map(lambda t: t.rstrip(". ") + "d?").filter(lambda t: "This is input:" not in t)


def same(found: Record, **wanted) -> bool:
    return all(np.array_equal(vars(found)[name], value) for name, value in wanted.items())


@given(
    DESCRIPTION,
    PLAIN,
    UNITS,
    st.sampled_from(("asr", "tts")),
    st.sampled_from(("paper", "release")),
)
def test_cross_modal_rows_come_back(description, text, units, task, templates) -> None:
    row = cross_modal_row(task, description, text, units, templates).text(TEXT_TAIL[templates])
    found, written_in = parse_row(row, 100)
    assert written_in == templates
    assert same(found, task=task, description=description, text=text, units=units)


@given(PLAIN, PLAIN, UNITS, UNITS, st.sampled_from((*CHAIN_FORMATS, "release")))
def test_chains_come_back(instruction, response, first, second, name) -> None:
    templates, kind = ("release", "speech_speech") if name == "release" else ("paper", name)
    row = chain_row(kind, instruction, response, first, second, templates).text(".")
    found, written_in = parse_row(row, 100)
    assert written_in == templates
    heard = first if kind.startswith("speech") else []
    spoken = second if kind.endswith("speech") else []
    assert same(found, format=kind, instruction=instruction, response=response)
    assert same(found, instruction_units=heard, response_units=spoken)


def test_the_seeds_own_end_marker_is_read() -> None:
    text = chain_row("text_text", "why", "so").text().replace("<eoa>", "<ea>") + "."
    assert parse_row(text)[0].response == "so"


def test_a_dropped_full_stop_comes_back() -> None:
    for description in ("Write it.", "Can you write it?"):
        row = cross_modal_row("asr", description, "a dog", U).text("..")
        assert parse_row(row)[0].description == description


GOOD = cross_modal_row("tts", "Say it.", "a dog", U, "release").text(" ")
CHAIN = chain_row("speech_speech", "why", "so", U, V, "release").text(".")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "template"),
        ("a dog", "template"),
        (" " + GOOD, "template"),
        (GOOD.replace("[SpeechGPT]", "[MOSS]"), "template"),
        (GOOD.replace("<eoa>", ""), "no end marker"),
        (GOOD[:60], "no end marker"),
        (GOOD.replace("<eosp>", ""), "unbalanced units"),
        (GOOD.replace("<sosp>", ""), "unbalanced units"),
        (GOOD.replace("<12>", "12"), "unbalanced units"),
        (GOOD.replace("<12><7>", ""), "no units"),
        (GOOD.replace("<sosp><12><7><eosp>", "a cat"), "no units"),
        (GOOD.replace("<12>", "<100>"), "unit out of range"),
        (GOOD.replace("<12>", "<99999999999999999999>"), "unbalanced units"),
        (GOOD.replace("a dog", ""), "empty text"),
        (GOOD.replace("a dog", " "), "empty text"),
        (GOOD.replace("Say it.", ""), "empty description"),
        (GOOD.replace("a dog", "a <7> dog"), "marker in text"),
        (GOOD.replace("a dog", "a <eos> dog"), "marker in text"),
        (GOOD.replace("a dog", "<sosp><1><eosp>"), "marker in text"),
        (GOOD.replace("a dog", "a [Human]: dog"), "marker in text"),
        (GOOD + GOOD, "marker in text"),
        (GOOD + "more", "template"),
        (CHAIN.replace("why", ""), "empty instruction"),
        (CHAIN.replace("so;", ";"), "empty response"),
        (CHAIN.replace("<3>", ""), "no units"),
        (CHAIN.replace("[ua]", "[tq]"), "marker in text"),
    ],
)
def test_what_is_not_well_formed(text: str, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        parse_row(text, 100)
    assert error.value.reason == reason, error.value


def test_a_hostile_row_takes_no_longer_than_its_length() -> None:
    started = time.process_time()
    for piece in (" This is input: ", "<eoh>", "[ta] ", "; ", "<sosp>", "<1>", "[Human]: "):
        with pytest.raises(BadRow):
            parse_row("[Human]: " + piece * (2_000_000 // len(piece)), 100)
    assert time.process_time() - started < 20  # a backtracking parser would need hours
