"""The cases of every **Try it yourself**, by its id ("1.a": the first one of notebook 01), with its reference solution.

Each case is a tuple of arguments; between them the cases of an exercise cover the empty input, the smallest one and whatever is usually
forgotten.
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


EXERCISES: dict[str, Exercise] = {
    "0.a": Exercise(
        (
            ("what is two plus three",),
            ("hello what is nine plus nine",),
            ("peter asks what is zero plus zero",),
        ),
        r.add_in_words,
    ),
    # 01: merge repeated units and keep how long each lasted; and back; how pure units are.
    "1.a": Exercise(
        (([7, 7, 7, 3, 3, 9],), ([],), ([5],), ([1, 2, 1, 1],), ([0, 0, 0, 0],)), r.merge
    ),
    "1.b": Exercise(
        (([7, 3, 9], [3, 2, 1]), ([], []), ([5], [4]), ([1, 2, 1], [1, 1, 2])), r.expand
    ),
    "1.c": Exercise(
        (
            ([4, 4, 4, 8, 8], ["a", "a", "b", "b", "b"]),
            ([1], ["a"]),
            ([1, 1, 1, 1], ["a", "b", "c", "d"]),
            ([1, 2, 3], ["a", "a", "a"]),
            ([2, 2, 2, 5, 5, 5], ["a", "a", "", "", "", "a"]),
        ),
        r.purity,
    ),
    # 02: from log(d + 1) to whole frames; frames to seconds.
    "2.a": Exercise((([0.0, 0.69, 1.1, 2.0],), ([],), ([-3.0],), ([3.2],)), r.to_frames),
    "2.b": Exercise((([1, 2, 3],), ([],), ([50],)), r.seconds_of),
    # 03: a row in the paper's layout; a choice by hash.
    "3.a": Exercise(
        (
            ("Write down what you hear.", "<sosp><12><7><eosp>", "two"),
            ("What is said?", "<sosp><1><eosp>", "a dog"),
            ("Say it.", "hello", "<sosp><3><eosp>"),
        ),
        r.paper_row,
    ),
    "3.b": Exercise(
        (("000001", 0, 100), ("000001", 1, 100), ("asr-17", 0, 7), ("", 3, 2)), r.choose
    ),
    # 04: unit errors; answers that are not too long.
    "4.a": Exercise(
        (
            ([1, 2, 3], [1, 3]),
            ([1, 2, 3], [1, 2, 3]),
            ([], [4, 5]),
            ([4, 5], []),
            ([1, 2, 3, 4], [2, 1, 3, 5]),
        ),
        r.edit_distance,
    ),
    "4.b": Exercise(
        (([("q", "a b c"), ("q", "a b c d"), ("q", "")], 3), ([], 35), ([("q", "a")], 0)),
        r.keep_short,
    ),
    # 05: look back; units to ids.
    "5.a": Exercise(
        (
            ("the dog is red and the cat is blue the dog is".split(), 2),
            ("a b a c a".split(), 1),
            ("a b c".split(), 1),
            ("x x".split(), 1),
            ("p q r p q".split(), 2),
        ),
        r.look_up,
    ),
    "5.b": Exercise((([12, 7], 660, 760, 761), ([], 10, 30, 31), ([0], 5, 9, 10)), r.encode_units),
    # 06: surprise.
    "6.a": Exercise((([0.5, 0.25, 0.125],), ([1.0],), ([0.01, 0.01],)), r.perplexity),
    "6.b": Exercise(((16.0, 32.0), (1.0, 30.0), (100.0, 50.0)), r.bits_per_second),
    # 07: what the loss counts; word errors.
    "7.a": Exercise(
        (
            ([1, 2], [3, 9, 4], 5.0, {9}),
            ([], [1], 2.0, set()),
            ([1], [], 5.0, {1}),
            ([9], [9], 5.0, {9}),
        ),
        r.loss_weights,
    ),
    "7.b": Exercise(
        (
            ("the big dog", "the dog"),
            ("a b", "a b"),
            ("a", "b c"),
            ("one two three", ""),
            ("a b c d", "b a c e"),
        ),
        r.word_error_rate,
    ),
    # 08: chains; low rank.
    "8.a": Exercise(
        (
            (["[tq]", "two", "plus", "[ta]", "five", "<eoa>"],),
            (["<eoa>"],),
            (["noise", "[ta]", "a", "<eoa>", "b"],),
            (["[tq]", "[ta]"],),
        ),
        r.split_chain,
    ),
    "8.b": Exercise((([(192, 192), (512, 192)], 16), ([], 8), ([(4, 3)], 1)), r.lora_parameters),
    # 09: intervals; accuracy by kind.
    "9.a": Exercise(
        (([1.0, 0.0, 1.0], [[0, 1, 2], [1, 1, 1], [0, 0, 2]]), ([2.0], [[0]]), ([1.0, 3.0], [])),
        r.bootstrap_means,
    ),
    "9.b": Exercise(
        (
            ([("sum", "a", "a"), ("sum", "b", "c"), ("place", "x", "x")],),
            ([],),
            ([("color", "a", "")],),
        ),
        r.accuracy_by_kind,
    ),
    # 10: what processes add up; what it costs.
    "10.a": Exercise(
        (
            ([6.0, 3.0], [2.0, 4.0]),
            ([6.0, 0.0], [3.0, 0.0]),
            ([5.0], [2.0]),
            ([1.0, 2.0, 9.0], [1.0, 1.0, 2.0]),
        ),
        r.loss_of_all,
    ),
    "10.b": Exercise(
        ((7e9, 1e9, 989e12, 0.4), (13e9, 0, 312e12, 0.5), (1e6, 3600, 6e6, 1.0)), r.gpu_hours
    ),
}
