"""Reference solutions of **Try it yourself**, as a learner would write them, and cases to compare
on (`exercises.yaml`): the empty input, the smallest one and whatever is usually forgotten."""

import ast
import hashlib
import math
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import yaml

from speechgpt_lib.metrics.unit_errors import unit_errors

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen".split()
NUMBERS += "fourteen fifteen sixteen seventeen eighteen".split()


def add_in_words(question: str) -> str:
    words = question.split()
    a, b = words[words.index("plus") - 1], words[words.index("plus") + 1]
    return f"{a} plus {b} is {NUMBERS[NUMBERS.index(a) + NUMBERS.index(b)]}"


def merge(units: list[int]) -> tuple[list[int], list[int]]:
    runs = [(unit, len(list(run))) for unit, run in groupby(units)]
    return [unit for unit, _ in runs], [duration for _, duration in runs]


def expand(units: list[int], durations: list[int]) -> list[int]:
    return [unit for unit, duration in zip(units, durations, strict=True) for _ in range(duration)]


def purity(units: list[int], labels: list[str]) -> float:
    best: dict[int, int] = {}
    for (unit, _), count in Counter(zip(units, labels, strict=True)).items():
        best[unit] = max(best.get(unit, 0), count)
    return sum(best.values()) / len(units)


def to_frames(log_durations: list[float]) -> list[int]:
    return [max(1, round(math.exp(d) - 1)) for d in log_durations]


def seconds_of(durations: list[int]) -> float:
    return sum(durations) * 320 / 16_000


def paper_row(description: str, given: str, answer: str) -> str:
    asked = f"[Human]:{description.removesuffix('.')}. This is input: {given}<eoh>."
    return f"{asked}[SpeechGPT]: {answer}<eos>.."


def choose(identity: str, seed: int, count: int) -> int:
    digest = hashlib.sha256(f"{seed} {identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def keep_short(dialogues: list[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    return [(asked, said) for asked, said in dialogues if 1 <= len(said.split()) <= limit]


def look_up(tokens: list, context: int):
    ends = [k for k in range(context, len(tokens)) if tokens[k - context : k] == tokens[-context:]]
    return tokens[ends[-1]] if ends else None


def encode_units(units: list[int], first_unit: int, sosp: int, eosp: int) -> list[int]:
    return [sosp, *(first_unit + unit for unit in units), eosp]


def perplexity(probabilities: list[float]) -> float:
    return math.exp(-sum(math.log(p) for p in probabilities) / len(probabilities))


def bits_per_second(surprise: float, units_per_second: float) -> float:
    return units_per_second * math.log2(surprise)


def loss_weights(prompt: list, answer: list, text_weight: float, is_unit: set) -> list[float]:
    return [0.0] * len(prompt) + [1.0 if token in is_unit else text_weight for token in answer]


def word_error_rate(said: str, heard: str) -> float:
    return unit_errors(said.split(), heard.split()) / max(len(said.split()), 1)


def split_chain(tokens: list[str]) -> dict[str, list[str]]:
    parts, current = {}, None
    for token in tokens:
        if token == "<eoa>":
            break
        if token in ("[tq]", "[ta]", "[ua]"):
            current = parts.setdefault(token, [])
        elif current is not None:
            current.append(token)
    return parts


def lora_parameters(shapes: list[tuple[int, int]], rank: int) -> int:
    return sum(rank * (rows + columns) for rows, columns in shapes)


def bootstrap_means(values: list[float], draws: list[list[int]]) -> list[float]:
    return [sum(values[i] for i in draw) / len(draw) for draw in draws]


def accuracy_by_kind(examples: list[tuple[str, str, str]]) -> dict[str, float]:
    right = Counter(kind for kind, expected, answered in examples if expected == answered)
    return {kind: right[kind] / n for kind, n in Counter(kind for kind, *_ in examples).items()}


def loss_of_all(sums: list[float], weights: list[float]) -> float:
    return sum(sums) / sum(weights)


def gpu_hours(parameters: float, tokens: float, flops: float, utilisation: float) -> float:
    return 6 * parameters * tokens / (flops * utilisation) / 3600


def level_db(samples: list[float]) -> float:
    power = sum(x * x for x in samples) / len(samples) if samples else 0.0
    return max(-120.0, 10 * math.log10(power)) if power > 0 else -120.0


def path_cost(costs: list[list[float]]) -> float:
    best: dict[tuple[int, int], float] = {}
    for i, row in enumerate(costs):
        for j, cost in enumerate(row):
            before = [best[p] for p in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if p in best]
            best[i, j] = cost + min(before, default=0.0)
    return best[len(costs) - 1, len(costs[0]) - 1]


class Exercise(NamedTuple):
    """`reference(*case)` is the right answer for every case in `cases`."""

    cases: tuple[tuple, ...]
    reference: Callable


_CASES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_OF_NOTEBOOK = {  # in the order of their letters
    0: [add_in_words],
    1: [merge, expand, purity],
    2: [to_frames, seconds_of],
    3: [paper_row, choose],
    4: [unit_errors, keep_short],
    5: [look_up, encode_units],
    6: [perplexity, bits_per_second],
    7: [loss_weights, word_error_rate],
    8: [split_chain, lora_parameters],
    9: [bootstrap_means, accuracy_by_kind],
    10: [loss_of_all, gpu_hours],
    11: [level_db, path_cost],
}
EXERCISES: dict[str, Exercise] = {}  # by id ("1.a")
for number, functions in _OF_NOTEBOOK.items():
    for letter, function in zip("abc", functions, strict=False):
        lines = _CASES[function.__name__].splitlines()
        cases = tuple(ast.literal_eval(f"({arguments},)") for arguments in lines)
        EXERCISES[f"{number}.{letter}"] = Exercise(cases, function)
