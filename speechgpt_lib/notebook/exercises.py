"""The cases and the reference solution of every **Try it yourself**, by its id ("1.a").

Each case is a tuple of arguments; between them the cases of an exercise cover the empty input, the
smallest one and whatever is usually forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speechgpt_lib.notebook import references as r


@dataclass(frozen=True)
class Exercise:
    """`reference(*case)` is the right answer for every case in `cases`."""

    cases: tuple[tuple[Any, ...], ...]
    reference: Callable


def _ask(reference: Callable, *cases: tuple[Any, ...]) -> Exercise:
    return Exercise(cases, reference)


_SUMS = (
    "what is two plus three",
    "hello what is nine plus nine",
    "peter asks what is zero plus zero",
)
_FACTS = "the dog is red and the cat is blue the dog is"
_CHAINS = ("[tq] two plus [ta] five <eoa>", "<eoa>", "noise [ta] a <eoa> b", "[tq] [ta]")
_GUESSES = [("sum", "a", "a"), ("sum", "b", "c"), ("place", "x", "x")]
EXERCISES: dict[str, Exercise] = {
    "0.a": _ask(r.add_in_words, *((question,) for question in _SUMS)),
    # 01: merge repeated units and keep how long each lasted; and back; how pure units are.
    "1.a": _ask(r.merge, ([7, 7, 7, 3, 3, 9],), ([],), ([5],), ([1, 2, 1, 1],), ([0, 0, 0, 0],)),
    "1.b": _ask(r.expand, ([7, 3, 9], [3, 2, 1]), ([], []), ([5], [4]), ([1, 2, 1], [1, 1, 2])),
    "1.c": _ask(
        r.purity,
        ([4, 4, 4, 8, 8], list("aabbb")),
        ([1], ["a"]),
        ([1, 1, 1, 1], list("abcd")),
        ([1, 2, 3], list("aaa")),
        ([2, 2, 2, 5, 5, 5], ["a", "a", "", "", "", "a"]),
    ),
    # 02: from log(d + 1) to whole frames; frames to seconds.
    "2.a": _ask(r.to_frames, ([0.0, 0.69, 1.1, 2.0],), ([],), ([-3.0],), ([3.2],)),
    "2.b": _ask(r.seconds_of, ([1, 2, 3],), ([],), ([50],)),
    # 03: a row in the paper's layout; a choice by hash.
    "3.a": _ask(
        r.paper_row,
        ("Write down what you hear.", "<sosp><12><7><eosp>", "two"),
        ("What is said?", "<sosp><1><eosp>", "a dog"),
        ("Say it.", "hello", "<sosp><3><eosp>"),
    ),
    "3.b": _ask(r.choose, ("000001", 0, 100), ("000001", 1, 100), ("asr-17", 0, 7), ("", 3, 2)),
    # 04: unit errors; answers that are not too long.
    "4.a": _ask(
        r.edit_distance,
        ([1, 2, 3], [1, 3]),
        ([1, 2, 3], [1, 2, 3]),
        ([], [4, 5]),
        ([4, 5], []),
        ([1, 2, 3, 4], [2, 1, 3, 5]),
    ),
    "4.b": _ask(
        r.keep_short,
        ([("q", "a b c"), ("q", "a b c d"), ("q", "")], 3),
        ([], 35),
        ([("q", "a")], 0),
    ),
    # 05: look back; units to ids.
    "5.a": _ask(
        r.look_up,
        (_FACTS.split(), 2),
        ("a b a c a".split(), 1),
        ("a b c".split(), 1),
        ("x x".split(), 1),
        ("p q r p q".split(), 2),
    ),
    "5.b": _ask(r.encode_units, ([12, 7], 660, 760, 761), ([], 10, 30, 31), ([0], 5, 9, 10)),
    # 06: surprise.
    "6.a": _ask(r.perplexity, ([0.5, 0.25, 0.125],), ([1.0],), ([0.01, 0.01],)),
    "6.b": _ask(r.bits_per_second, (16.0, 32.0), (1.0, 30.0), (100.0, 50.0)),
    # 07: what the loss counts; word errors.
    "7.a": _ask(
        r.loss_weights,
        ([1, 2], [3, 9, 4], 5.0, {9}),
        ([], [1], 2.0, set()),
        ([1], [], 5.0, {1}),
        ([9], [9], 5.0, {9}),
    ),
    "7.b": _ask(
        r.word_error_rate,
        ("the big dog", "the dog"),
        ("a b", "a b"),
        ("a", "b c"),
        ("one two three", ""),
        ("a b c d", "b a c e"),
    ),
    # 08: chains; low rank.
    "8.a": _ask(r.split_chain, *((tokens.split(),) for tokens in _CHAINS)),
    "8.b": _ask(r.lora_parameters, ([(192, 192), (512, 192)], 16), ([], 8), ([(4, 3)], 1)),
    # 09: intervals; accuracy by kind.
    "9.a": _ask(
        r.bootstrap_means,
        ([1.0, 0.0, 1.0], [[0, 1, 2], [1, 1, 1], [0, 0, 2]]),
        ([2.0], [[0]]),
        ([1.0, 3.0], []),
    ),
    "9.b": _ask(r.accuracy_by_kind, (_GUESSES,), ([],), ([("color", "a", "")],)),
    # 10: what processes add up; what it costs.
    "10.a": _ask(
        r.loss_of_all,
        ([6.0, 3.0], [2.0, 4.0]),
        ([6.0, 0.0], [3.0, 0.0]),
        ([5.0], [2.0]),
        ([1.0, 2.0, 9.0], [1.0, 1.0, 2.0]),
    ),
    "10.b": _ask(
        r.gpu_hours, (7e9, 1e9, 989e12, 0.4), (13e9, 0, 312e12, 0.5), (1e6, 3600, 6e6, 1.0)
    ),
}
