"""Reference solutions of the exercises, as a learner would write them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen".split()
NUMBERS += "fourteen fifteen sixteen seventeen eighteen".split()


def add_in_words(question: str) -> str:
    words = question.split()
    a, b = words[words.index("plus") - 1], words[words.index("plus") + 1]
    return f"{a} plus {b} is {NUMBERS[NUMBERS.index(a) + NUMBERS.index(b)]}"


def merge(units: list[int]) -> tuple[list[int], list[int]]:
    merged, durations = [], []
    for unit in units:
        if merged and merged[-1] == unit:
            durations[-1] += 1
        else:
            merged.append(unit)
            durations.append(1)
    return merged, durations


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


def edit_distance(reference: list, hypothesis: list) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, item in enumerate(reference, 1):
        above, row = row, [i]
        for j, other in enumerate(hypothesis, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (item != other)))
    return row[-1]


def keep_short(dialogues: list[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    return [
        (question, answer) for question, answer in dialogues if 1 <= len(answer.split()) <= limit
    ]


def look_up(tokens: list, context: int):
    end = len(tokens)
    wanted = tokens[end - context :]
    for start in range(end - context - 1, -1, -1):
        if tokens[start : start + context] == wanted:
            return tokens[start + context]
    return None


def encode_units(units: list[int], first_unit: int, sosp: int, eosp: int) -> list[int]:
    return [sosp, *(first_unit + unit for unit in units), eosp]


def perplexity(probabilities: list[float]) -> float:
    return math.exp(-sum(math.log(p) for p in probabilities) / len(probabilities))


def bits_per_second(surprise: float, units_per_second: float) -> float:
    return units_per_second * math.log2(surprise)


def loss_weights(
    prompt: list[int], answer: list[int], text_weight: float, is_unit: set[int]
) -> list[float]:
    return [0.0] * len(prompt) + [1.0 if token in is_unit else text_weight for token in answer]


def word_error_rate(said: str, heard: str) -> float:
    return edit_distance(said.split(), heard.split()) / max(len(said.split()), 1)


def split_chain(tokens: list[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    current = None
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
    kinds: dict[str, list[bool]] = {}
    for kind, expected, answered in examples:
        kinds.setdefault(kind, []).append(expected == answered)
    return {kind: sum(hits) / len(hits) for kind, hits in kinds.items()}


def loss_of_all(sums: list[float], weights: list[float]) -> float:
    return sum(sums) / sum(weights)


def gpu_hours(parameters: float, tokens: float, flops: float, utilisation: float) -> float:
    return 6 * parameters * tokens / (flops * utilisation) / 3600
