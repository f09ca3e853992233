"""Speed of the unit vocoder at published size.

    python benchmarks/vocoder.py [--utterances 16] [--rounds 5] [--device cuda]

Random weights, utterances as long as read sentences, every arm in one run with the same weights,
threads and durations.  The baseline is written from the description of fairseq's vocoder: one
utterance at a time, 1-d convolutions, weight norm computed in every call.  Then a ladder, with one
change more in every arm.  Parity is the greatest difference of any sample from the baseline; for
bf16 also the log-spectral distance from it.

A CPU writes its convolutions anew for every length that it has not met lately, and that is part of
the cost of a corpus.  So every round has other lengths, and every arm lives in a process of its
own, where it meets no lengths but its own; they take turns.

A stream is measured as a listener meets it: how much speech the units so far must make before the
first sound can come, and the time from the last of these units to that sound.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv1d, conv_transpose1d, leaky_relu

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import device_name, finish
from speechgpt_lib.metrics.waveform import log_spectral_distance
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.recipes.schema import Optimization, VocoderSettings
from speechgpt_lib.training.devices import resolve_precision
from speechgpt_lib.vocoder import synthesis
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.streaming import lookahead
from speechgpt_lib.vocoder.synthesis import Vocoder

UNITS = 1000
_UNUSED = Optimization(steps=1, learning_rate=2e-4)
PUBLISHED = VocoderSettings(optimization=_UNUSED, duration_optimization=_UNUSED)

Speak = Callable[[list[np.ndarray]], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    device, lengths = arguments.device, sentence_lengths(arguments.utterances)
    precisions = ["fp32", "bf16"]
    if resolve_precision("auto", device) != "bf16":
        precisions.remove("bf16")
        print("bf16 is left out: this processor gains nothing by it")
    names = ["baseline", "weight norm folded", "channels last", *precisions]
    batches = (30, 240) if device != "cpu" else (30,)
    names += [f"{p}, batches of {s} s" for s in batches for p in precisions]
    context, workers = multiprocessing.get_context("spawn"), {}
    for name in names:
        here, there = context.Pipe()
        process = context.Process(
            target=serve, args=(name, device, arguments.threads, there), daemon=True
        )
        process.start()
        workers[name] = (process, here)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    parity: dict[str, dict] = {name: {"greatest difference": 0.0} for name in names[1:]}
    spoken = 0.0
    for turn in range(arguments.rounds + 2):  # two rounds to warm up
        rng = np.random.default_rng(turn)
        utterances = [rng.integers(0, UNITS, length + turn) for length in lengths]
        waves = {}
        for name, (_, pipe) in workers.items():
            pipe.send(utterances)
            taken, waves[name] = pipe.recv()
            if turn >= 2:
                seconds[name].append(taken / sum(map(len, utterances)) / HOP * SAMPLE_RATE)
        spoken = sum(map(len, utterances)) * HOP / SAMPLE_RATE
        for name, found in parity.items():
            differences = [
                np.abs(a - b).max() for a, b in zip(waves["baseline"], waves[name], strict=True)
            ]
            found["greatest difference"] = max(
                found["greatest difference"], float(max(differences))
            )
    for name, found in parity.items():
        if name.startswith("bf16"):
            pairs = zip(waves["baseline"], waves[name], strict=True)
            found["log-spectral distance, dB"] = round(
                float(np.mean([log_spectral_distance(a, b) for a, b in pairs])), 3
            )
    for process, pipe in workers.values():
        pipe.send(None)
        process.join()

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{len(lengths)} utterances, {spoken:.0f} s of sound a round; {device_name(device)}")
    print(f"{'':28} real-time factor  ratio  parity")
    for name, value in medians.items():
        note = ", ".join(f"{key} {figure:.2g}" for key, figure in parity.get(name, {}).items())
        print(f"{name:28} {value:16.4f} {medians['baseline'] / value:6.2f}  {note}")
    ratios = {
        name: medians["baseline"] / value for name, value in medians.items() if name != "baseline"
    }
    headline = {
        f"{p} against baseline": max(v for name, v in ratios.items() if name.startswith(p))
        for p in precisions
    }
    streams = {p: streaming(make_vocoder(device, p), utterances) for p in precisions}
    for name, figures in streams.items():
        print(
            f"stream, {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
        )
    parity |= {
        "real-time factor": {name: round(value, 4) for name, value in medians.items()},
        "streaming": streams,
    }
    finish("vocoder", headline | ratios, parity, device, arguments.out)


def serve(name: str, device: str, threads: int, pipe) -> None:
    """One arm in its own process: utterances in; seconds and waves out."""
    torch.set_num_threads(threads)
    speak = arm(name, device)
    while (utterances := pipe.recv()) is not None:
        started = time.perf_counter()
        waves = speak(utterances)
        pipe.send((time.perf_counter() - started, waves))


def arm(name: str, device: str) -> Speak:
    if name in ("baseline", "weight norm folded"):
        model = (generator() if name == "baseline" else generator().fold_weight_norm()).to(device)
        return lambda utterances: [one_dimensional(model, frames) for frames in utterances]
    precision, _, batch = name.partition(", batches of ")
    vocoder = make_vocoder(device, "fp32" if name == "channels last" else precision)
    if name == "channels last":
        return lambda utterances: [exact_length(vocoder.generator, frames) for frames in utterances]
    batch_s = float(batch.removesuffix(" s") or 0)
    return lambda utterances: vocoder.synthesize_many(
        utterances, [np.ones_like(u) for u in utterances], batch_s=batch_s
    )


def sentence_lengths(count: int) -> list[int]:
    """Frames of utterances as long as read sentences are: log-normal around 3 s, 1 to 10 s."""
    rng = np.random.default_rng(0)
    return [int(n) for n in np.clip(rng.lognormal(np.log(150), 0.55, count), 50, 490)]


def generator() -> UnitGenerator:
    torch.manual_seed(0)
    made = UnitGenerator(UNITS, PUBLISHED).eval().requires_grad_(False)
    for module in (
        made.modules()
    ):  # as loud as speech: the default initialisation whispers, and differences would not show
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.parametrizations.weight.original0.mul_(1.6)
    return made


def make_vocoder(device: str, precision: str) -> Vocoder:
    torch.manual_seed(1)
    return Vocoder(
        generator(),
        DurationPredictor(UNITS),
        "benchmark",
        PUBLISHED,
        device=device,
        precision=precision,
    )


@torch.inference_mode()
def one_dimensional(model: UnitGenerator, frames: np.ndarray) -> np.ndarray:
    """The generator as fairseq runs it."""

    def convolve(layer: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
        return conv1d(x, layer.weight, layer.bias, padding=layer.padding, dilation=layer.dilation)

    x = convolve(
        model.conv_pre,
        model.dict(torch.from_numpy(frames)[None].to(model.dict.weight.device)).transpose(1, 2),
    )
    for up, blocks in model.stages():
        x = conv_transpose1d(leaky_relu(x, 0.1), up.weight, up.bias, up.stride, up.padding)
        total = None
        for block in blocks:
            y = x
            for dilated, plain in zip(block.convs1, block.convs2, strict=True):
                y = convolve(plain, leaky_relu(convolve(dilated, leaky_relu(y, 0.1)), 0.1)) + y
            total = y if total is None else total + y
        x = total / len(blocks)
    return torch.tanh(convolve(model.conv_post, leaky_relu(x)))[0, 0].cpu().numpy()


@torch.inference_mode()
def exact_length(model: UnitGenerator, frames: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(frames)[None].to(model.dict.weight.device))[0].cpu().numpy()


def streaming(vocoder: Vocoder, utterances: list[np.ndarray]) -> dict[str, float]:
    """Units one by one, durations predicted.

    Returns the real-time factor, how much must have come, and the wait for the first sound.
    """
    waits, needed, spent, heard, apart = [], [], 0.0, 0, 0.0
    for turn, units in enumerate([utterances[0], *utterances[:6]]):  # the first one warms up
        stream, pieces = vocoder.stream(), []
        durations = vocoder.predict_durations(units)
        started = time.perf_counter()
        for position, unit in enumerate(units):
            before = time.perf_counter()
            piece = stream.push(unit)
            if turn and len(piece) and not pieces:
                waits.append(time.perf_counter() - before)
                needed.append(durations[: position + 1].sum() * HOP / SAMPLE_RATE)
            pieces += [piece] if len(piece) else []
        pieces.append(stream.finish())
        if turn:
            spent += time.perf_counter() - started
            heard += sum(map(len, pieces))
            apart = max(
                apart, float(np.abs(np.concatenate(pieces) - vocoder.synthesize(units)).max())
            )
    return {
        "piece, s": synthesis.STREAM_PIECE * HOP / SAMPLE_RATE,
        "lookahead, s": lookahead(vocoder.generator) / SAMPLE_RATE,
        "units before the first sound, s": statistics.median(needed),
        "wait for the first sound, s": statistics.median(waits),
        "real-time factor": spent / (heard / SAMPLE_RATE),
        "greatest difference from offline": apart,
    }


if __name__ == "__main__":
    main()
