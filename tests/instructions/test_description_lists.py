"""Lists in every shape are found whole; nothing gets through that would break a row."""

from __future__ import annotations

import json
import string
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_lib.instructions.descriptions import (
    STRANGE,
    load_descriptions,
    normalize,
    parse_list,
    sift,
    tidy,
    validate,
)

THREE = [
    "Write down what is said.",
    "Could you type this up?",
    "Listen closely. Then note every word!",
]

SHAPES = {
    "1. x": "{k}. {x}",
    "1) x": "{k}) {x}",
    "(1) x": "({k}) {x}",
    "1: x": "{k}: {x}",
    "Task 1: x": "Task {k}: {x}",
    "- x": "- {x}",
    "* x": "* {x}",
    "• x": "• {x}",
    "- 1. x": "- {k}. {x}",
    "indented": "   {k}.  {x}",
    "bold number": "**{k}.** {x}",
    "bold item": "{k}. **{x}**",
    "all bold": "**{k}. {x}**",
    "italic": "{k}. *{x}*",
    "underlined": "{k}. _{x}_",
    "backticks": "{k}. `{x}`",
    "quotes": '{k}. "{x}"',
    "typographic quotes": "{k}. “{x}”",
    "bold quotes": '- **"{x}"**',
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape):
    lines = [shape.format(k=k, x=x) for k, x in enumerate(THREE, 1)]
    assert parse_list("\n".join(lines)) == THREE
    assert parse_list("\r\n\r\n".join(lines)) == THREE
    assert (
        parse_list(
            "Sure! Here are three:\n\n"
            + "\n".join(lines)
            + "\n\nI hope this helps! Let me know if you need more."
        )
        == THREE
    )
    assert parse_list("```\n" + "\n".join(lines) + "\n```") == THREE


def test_plain_lines_count_only_where_there_is_no_mark():
    plain = "\n".join(THREE)
    assert parse_list(f"Here are three:\n{plain}\n\nI hope these are of use.") == THREE
    assert parse_list("Let me know what is being said.") == ["Let me know what is being said."]
    assert parse_list(plain + "\n1. Transcribe the speech.") == ["Transcribe the speech."]
    assert (
        parse_list("I'm sorry, but I can't help with that.")
        == []
        == parse_list("I’m sorry, I cannot do this.")
    )
    assert parse_list("") == [] == parse_list(" \n\n ") == parse_list("```\n```")


def test_json():
    assert parse_list(json.dumps(THREE)) == THREE
    assert parse_list(f"Here you go:\n```json\n{json.dumps(THREE, indent=2)}\n```\nEnjoy!") == THREE
    assert parse_list(f"The list: {json.dumps(THREE)}. Is it right?") == THREE
    assert parse_list(json.dumps({"tasks": THREE})) == THREE
    cut = json.dumps(THREE, indent=2).rpartition('"Listen')[0]  # at a limit of tokens
    assert sift(parse_list(cut))[0] == THREE[:2]


def test_wrapped_lines_are_joined_and_what_is_said_between_items_is_not():
    text = """Here is what you asked for.
### Questions
1. Could you write down
   what is said?
2. Would you please
type up this
recording?
**Imperatives:**
3.
   Listen closely. Then
   note every word.

These are merely suggestions.
4. Is it speech?
Transcribe it.
5. Is it text?
   Read it.
Do you want more?
"""
    expected = (
        "Could you write down what is said?|Would you please type up this recording?"
        "|Listen closely. Then note every word."
    )
    assert parse_list(text) == [
        *expected.split("|"),
        "Is it speech? Transcribe it.",
        "Is it text? Read it.",
    ]


def test_what_a_model_thinks_before_is_left_out():
    assert parse_list("<think>\n1. Maybe this one.\n</think>\n1. Transcribe the speech.") == [
        "Transcribe the speech."
    ]
    assert parse_list("1. Maybe this one.\n</think>\n1. Transcribe the speech.") == [
        "Transcribe the speech."
    ]
    assert parse_list("<think>\n1. Maybe this one.") == []


def test_quotes_inside_a_description_stay():
    assert parse_list('1. "Yes" or "no": what is said?') == ['"Yes" or "no": what is said?']
    assert parse_list('1. "Yes" or "no"') == ['"Yes" or "no"']
    assert parse_list('1. "Write this down".') == ["Write this down."]
    assert parse_list("1. Write the speaker's words") == ["Write the speaker's words"]


WORDS = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=9), min_size=2, max_size=15)
OPENINGS = st.sampled_from("Write Say Transcribe Could Please Would Listen Speak".split())
DESCRIPTION = st.builds(
    lambda first, words, end: " ".join([first, *words]) + end,
    OPENINGS,
    WORDS,
    st.sampled_from(".?!"),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(DESCRIPTION, min_size=1, max_size=8),
    st.sampled_from([*SHAPES.values(), "{x}", "json"]),
    st.sampled_from([None, "", "    "]),
    st.sampled_from(["\n", "\n\n", "\r\n"]),
    st.sampled_from(["", "Certainly! Here is the list:\n\n"]),
    st.sampled_from(["", "\n\nI hope this helps. Feel free to ask if anything is unclear."]),
    st.booleans(),
)
def test_a_list_of_any_shape_is_given_back(
    descriptions, shape, indent, between, before, after, fenced
):
    if shape == "json":
        body = json.dumps(descriptions)
    else:
        items = [shape.format(k=k, x=x) for k, x in enumerate(descriptions, 1)]
        if indent is not None and shape != "{x}":  # wrapped, as on a narrow screen
            items = [
                item
                if item[0] == " "
                else "\n".join(textwrap.wrap(item, 24, subsequent_indent=indent))
                for item in items
            ]
        body = between.join(items)
    body = f"```\n{body}\n```" if fenced else body
    assert parse_list(before + body + after) == descriptions


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("aB 1.?!-*_\"'`[]{}<>()#:\n\r\t•“é\u2028|,\\"), max_size=60))
def test_any_text_at_all_is_read_and_only_safe_lines_get_through(text):
    good, refused = sift(parse_list(text))
    assert all(
        validate(line) is None
        and line.isascii()
        and line.isprintable()
        and not set(line) & set("<>[]{}")
        for line in good
    )
    assert len({normalize(line) for line in good}) == len(good) and all(
        reason for _, reason in refused
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("Write this\ndown now.", "a line break"),
        ("Write this down now.\n", "a line break"),
        ("Write this\u2028down now.", "a line break"),
        ("Écris ce que tu entends.", "not plain English letters (ASCII)"),
        ("Write this\tdown now.", "not plain English letters (ASCII)"),
        ("Write down what <sosp> is.", STRANGE),
        ("Write down what [name] says.", STRANGE),
        ("Write down what {name} says.", STRANGE),
        ("Write this down. this is INPUT: hello.", STRANGE),
        ("Write this.", "fewer than 3 words"),
        ("1 2 3 4 5.", "fewer than 3 words"),
        ("Write " * 41 + "it.", "more than 40 words"),
        ("Write this down. Do it now! Will you?", "more than 2 sentences"),
        ("Write this down now", "no . ? or ! at the end"),
        ("Write this down now:", "no . ? or ! at the end"),
        ("Write this down.", None),
        ("Is this right? Write it down.", None),
        ("Write " * 39 + "it.", None),
        ("Don't paraphrase: write the speaker's words (all 10 of them)!", None),
    ],
)
def test_what_is_refused_and_why(line, reason):
    assert validate(line) == reason


@pytest.mark.parametrize(
    ("line", "tidied"),
    [
        ("  Write   this\tdown ", "Write this down."),
        ("Write the speaker’s “words” – all…", 'Write the speaker\'s "words" - all...'),
        ("Write this down?", "Write this down?"),
        ("Write this (all of it)", "Write this (all of it)."),
        ("Write this down:", "Write this down:"),
        ("Write this\ndown", "Write this\ndown."),
        ("", ""),
    ],
)
def test_tidying(line, tidied):
    assert tidy(line) == tidied


def test_the_same_said_twice_is_refused_whatever_its_form():
    good, refused = sift(
        ["Write this down!", "write THIS, down", "Write that down", "Say it."],
        known=["Write that down."],
    )
    assert good == ["Write this down!"]
    assert refused == [
        ("write THIS, down.", "repeated"),
        ("Write that down.", "repeated"),
        ("Say it.", "fewer than 3 words"),
    ]


@pytest.mark.parametrize("task", ["asr", "tts"])
def test_the_descriptions_that_come_with_the_library_pass(task):
    assert sift(load_descriptions(task)) == (list(load_descriptions(task)), [])
