"""The instruction formats, to the byte, and the sets they are kept in."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import (
    CHAIN_FORMATS,
    META_PREFIX,
    TEXT_TAIL,
    chain_row,
    cross_modal_row,
)

U, V = np.array([12, 7]), np.array([3])
CHAINS = {
    "speech_speech": (
        "[Human]: This is a speech instruction: <sosp><12><7><eosp>. And your response should be "
        "speech. You can do it step by step. You can first transcribe the instruction and get the "
        "text Instruction. Then you can think about the instruction and get the text response. "
        "Last, you should speak the response aloud <eoh>. [SpeechGPT]: "
        "[tq] why; [ta] so; [ua] <sosp><3><eosp><eoa>."
    ),
    "speech_text": (
        "[Human]: This is a speech instruction: <sosp><12><7><eosp>. And your response should be "
        "text. You can do it step by step. You can first transcribe the instruction and get the "
        "text instruction. Then you can think about the instruction and get the text response. "
        "<eoh>. [SpeechGPT]: [tq] why; [ta] so<eoa>."
    ),
    "text_speech": (
        "[Human]: This is a text instruction: why. And your response should be speech. You can do "
        "it step by step. You can think about the instruction and get the text response. Then you "
        "should speak the response aloud <eoh>. [SpeechGPT]: "
        "[ta] so; [ua] <sosp><3><eosp><eoa>."
    ),
    "text_text": (
        "[Human]: This is a text instruction: why. And your response should be text. You can think "
        "about the instruction and get the text response. [SpeechGPT]: [ta] so<eoa>."
    ),
}


@pytest.mark.parametrize("name", CHAIN_FORMATS)
def test_chains_are_the_seeds_to_the_byte(name: str) -> None:
    assert chain_row(name, "why", "so", U, V).text(".") == CHAINS[name]


def test_cross_modal_rows_in_both_layouts() -> None:
    asr = cross_modal_row("asr", "Write it.", "two dogs", U).text(TEXT_TAIL["paper"])
    assert asr == (
        "[Human]:Write it. This is input: <sosp><12><7><eosp><eoh>.[SpeechGPT]: two dogs<eos>.."
    )
    tts = cross_modal_row("tts", "Can you say it?", "two dogs", U).text("..")
    assert tts == (
        "[Human]:Can you say it?. This is input: two dogs<eoh>.[SpeechGPT]: "
        "<sosp><12><7><eosp><eos>.."
    )
    released = cross_modal_row("tts", "Say it.", "two dogs", U, "release")
    assert released.text(TEXT_TAIL["release"]) == (
        "[Human]: Say it. This is input: two dogs<eoh> [SpeechGPT]: <sosp><12><7><eosp><eoa> "
    )
    chain = chain_row("speech_speech", "why", "so", U, V, "release").text(".")
    assert chain == (
        "[Human]: <sosp><12><7><eosp><eoh>. [SpeechGPT]: why; [ta] so; [ua] <sosp><3><eosp><eoa>."
    )


def test_the_meta_prefix_has_its_two_spaces() -> None:
    assert "Fudan University.  SpeechGPT can" in META_PREFIX and META_PREFIX.endswith("outputs.\n")


def test_prompts_have_no_answer_and_wrong_names_are_refused() -> None:
    assert chain_row("speech_text", "", instruction_units=U).answer == ()
    with pytest.raises(UserError, match="speech_speech"):
        chain_row("song", "why")
    with pytest.raises(UserError, match="units"):
        chain_row("speech_text", "why")
    with pytest.raises(UserError, match="paper, release"):
        cross_modal_row("asr", "d", "t", U, "own")
    with pytest.raises(UserError, match="asr"):
        cross_modal_row("sing", "d", "t", U)
    with pytest.raises(UserError, match="no template"):
        chain_row("text_text", "why", templates="release")
