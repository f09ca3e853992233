"""Speed of unit extraction at HuBERT-base size.

    python benchmarks/units.py [--seconds 120] [--rounds 3] [--device cuda]

Random weights, 1000 centroids taken from the features themselves, files with the mix of lengths of
LibriSpeech, all arms in one run with the same weights and threads, reading included.  Two
baselines, written from their description:

- *release*: one file at a time, 11 layers in fp32, distances to all centroids, argmin (what the
  published code does);
- *sorted and padded*: batches of 8 files of similar length, padded and masked, all 12 layers,
  scikit-learn's k-means on the CPU (slamkit).

Ratios are seconds of the release's way over seconds of the arm.  Misses are frames that get another
unit than in the release's way, apart from near ties, where the two nearest centroids differ by less
than 1e-4 of the distance.  On a GPU torch rounds the inputs of convolutions to 10 bits unless told
otherwise: the release's way is timed so, and misses of all ways are counted against it in full
precision.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig, HubertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import finish, measure
from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.training.devices import matmul_peak, resolve_precision
from speechgpt_lib.units.extract import ShardEncoder
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.sequence import expand

LAYER, CLUSTERS = 11, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="audio in all files together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--processes", type=int, default=2, help="for the arms with one thread a process (CPU only)"
    )
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory_mb(arguments.memory_of))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = write_speech(Path(folder), arguments.seconds)
        model, inventory = make_inventory(files, arguments.device)
        run(files, model, inventory, arguments)


def run(
    files: list[Path], model: HubertModel, inventory: UnitInventory, arguments: argparse.Namespace
) -> None:
    device, items = arguments.device, [item_of(path) for path in files]
    found: dict[str, list[np.ndarray]] = {}

    def keep(name: str, function):
        def arm() -> None:
            found[name] = function()

        return arm

    precisions = ["fp32", "bf16"]
    if resolve_precision("auto", device) != "bf16":
        precisions.remove("bf16")
        print("bf16 is left out: this processor gains nothing by it")
    settings = {p: ExtractionSettings(precision=p) for p in precisions}
    settings["one by one"] = ExtractionSettings(batch_seconds=0.001)
    encoders = {name: ShardEncoder(inventory, how, device) for name, how in settings.items()}
    arms = {
        "release": keep("release", lambda: release_way(files, model, inventory, device)),
        "sorted and padded": keep(
            "sorted and padded", lambda: padded_way(files, model, inventory, device)
        ),
        "fp32, one file at a time": keep(
            "fp32, one file at a time", lambda: frames_of(encoders["one by one"].encode(items)[0])
        ),
    }
    for name in precisions:
        encode = encoders[name].encode
        arms[name] = keep(name, lambda encode=encode: frames_of(encode(items)[0]))
    pools = []
    if device == "cpu" and arguments.processes > 1:
        with tempfile.TemporaryDirectory() as folder:
            inventory.save(Path(folder))
            for precision in precisions:
                pool = multiprocessing.get_context("spawn").Pool(
                    arguments.processes, _prepare, (folder, precision)
                )
                name = f"{precision}, {arguments.processes} processes of one thread"
                arms[name] = keep(
                    name, functools.partial(in_processes, pool, files, arguments.processes)
                )
                pools.append(pool)
            seconds = measure(arms, arguments.rounds)
    else:
        seconds = measure(arms, arguments.rounds)
    for pool in pools:
        pool.terminate()

    audio = sum(item.seconds for item in items)
    exact = found["release"]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ties = near_ties(files, model, inventory, device)
        if device != "cpu":
            exact = release_way(files, model, inventory, device)
    parity = {
        name: misses(exact, units, ties) for name, units in found.items() if units is not exact
    }
    frames = sum(map(len, exact))
    close = sum(t.sum() for t in ties)
    print(f"{len(files)} files, {audio:.0f} s, {frames} frames, {close} of them near ties")
    print(f"{'':38} x real time   ratio   misses")
    for name, value in seconds.items():
        row = f"{name:38} {audio / value:11.1f} {seconds['release'] / value:7.2f}"
        print(
            row
            + (
                f"   {parity[name]:6d} ({100 * parity[name] / frames:.3f} %)"
                if name in parity
                else ""
            )
        )
    ratios = {
        name: seconds["release"] / value for name, value in seconds.items() if name != "release"
    }
    best = max((n for n in ratios if n.startswith("fp32")), key=ratios.get)
    headline = {
        "fp32 against release": ratios[best],
        "fp32 against sorted and padded": seconds["sorted and padded"] / seconds[best],
    }
    if "bf16" in precisions:
        half = (value for name, value in ratios.items() if name.startswith("bf16"))
        headline["bf16 against release"] = max(half)
    parity = {"frames": frames, "misses": parity, "peak_memory_mb": peak_memory(device)}
    print(", ".join(f"{n} {mb:.0f} MB" for n, mb in parity["peak_memory_mb"].items()))
    share = flops_per_second(model) * audio / seconds[best] / matmul_peak(device)
    print(f"{best}: {100 * share:.0f} % of the fp32 matmul peak measured here")
    facts = {"share_of_fp32_peak": round(share, 3)}
    finish("units", headline | ratios, parity, device, arguments.out, **facts)


# --- the two baselines ----------------------------------------------------------------------------
@torch.inference_mode()
def release_way(
    files: list[Path], model: HubertModel, inventory: UnitInventory, device: str
) -> list[np.ndarray]:
    centroids = torch.from_numpy(inventory.kmeans.centroids).to(device).T
    squares = centroids.square().sum(0, keepdim=True)
    units = []
    for path in files:
        hidden = hidden_state(model, torch.from_numpy(read_audio(path))[None].to(device))[0]
        distances = hidden.square().sum(1, keepdim=True) - 2 * hidden @ centroids + squares
        units.append(distances.argmin(1).cpu().numpy())
    return units


@torch.inference_mode()
def padded_way(
    files: list[Path], model: HubertModel, inventory: UnitInventory, device: str, size: int = 8
) -> list[np.ndarray]:
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(CLUSTERS, n_init=1)
    kmeans.cluster_centers_, kmeans._n_threads = inventory.kmeans.centroids, torch.get_num_threads()
    order = sorted(range(len(files)), key=lambda i: soundfile.info(files[i]).frames)
    units: list[np.ndarray] = [np.empty(0)] * len(files)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        waves = [torch.from_numpy(read_audio(files[i])) for i in chosen]
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(w), dtype=torch.long) for w in waves], True
        ).to(device)
        batch = torch.nn.utils.rnn.pad_sequence(waves, True).to(device)
        hidden = (
            model(batch, attention_mask=mask, output_hidden_states=True).hidden_states[LAYER].cpu()
        )
        for i, wave, states in zip(chosen, waves, hidden, strict=True):
            units[i] = kmeans.predict(states[: 1 + (len(wave) - 400) // 320].numpy())
    return units


def hidden_state(model: HubertModel, waves: torch.Tensor) -> torch.Tensor:
    """Layer 11 by the modules of transformers, without the layer above."""
    hidden = model.feature_projection(model.feature_extractor(waves).transpose(1, 2))
    hidden = model.encoder.layer_norm(hidden + model.encoder.pos_conv_embed(hidden))
    for block in model.encoder.layers[:LAYER]:
        output = block(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


# --- ours -----------------------------------------------------------------------------------------
def item_of(path: Path) -> SimpleNamespace:
    info = soundfile.info(path)
    seconds = info.frames / info.samplerate
    return SimpleNamespace(seconds=seconds, read=functools.partial(read_audio, path))


def frames_of(rows: list[dict]) -> list[np.ndarray]:
    return [expand(row["units"], row["durations"]) for row in rows]


def _prepare(folder: str, precision: str) -> None:
    global _encoder
    torch.set_num_threads(1)
    settings = ExtractionSettings(precision=precision)
    _encoder = ShardEncoder(UnitInventory.load(Path(folder)), settings)


def _encode(files: list[Path]) -> list[np.ndarray]:
    return frames_of(_encoder.encode([item_of(path) for path in files])[0])


def in_processes(pool, files: list[Path], processes: int) -> list[np.ndarray]:
    """Shards of neighbouring files, as the extraction cuts them."""
    size = -(-len(files) // (3 * processes))
    return [
        units
        for shard in pool.imap(_encode, [files[i : i + size] for i in range(0, len(files), size)])
        for units in shard
    ]


# --- parity and memory ----------------------------------------------------------------------------
@torch.inference_mode()
def near_ties(
    files: list[Path], model: HubertModel, inventory: UnitInventory, device: str
) -> list[np.ndarray]:
    centroids, ties = torch.from_numpy(inventory.kmeans.centroids).double().to(device), []
    for path in files:
        wave = torch.from_numpy(read_audio(path))[None].to(device)
        hidden = hidden_state(model, wave)[0].double()
        near, far = torch.cdist(hidden, centroids).square().topk(2, largest=False).values.T
        ties.append((far - near < 1e-4 * far).cpu().numpy())
    return ties


def misses(expected: list[np.ndarray], found: list[np.ndarray], ties: list[np.ndarray]) -> int:
    return int(
        sum(((a != b) & ~tie).sum() for a, b, tie in zip(expected, found, ties, strict=True))
    )


def peak_memory(device: str) -> dict[str, float]:
    """MB: on a GPU what torch took there at most, else of processes that extract from few and many
    files."""
    if device != "cpu":
        return {"GPU": round(torch.cuda.max_memory_allocated() / 1e6)}
    return {f"{count} files": memory_in_a_process(count) for count in (40, 400)}


def memory_in_a_process(files: int) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", str(files)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def peak_memory_mb(count: int) -> float:
    """Peak memory of a process that extracts units from `count` files of 10 s, in shards of 40."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.flac" for k in range(count)]
        rng = np.random.default_rng(0)
        for path in files:
            soundfile.write(path, rng.normal(scale=0.1, size=160_000), 16_000)
        config = HubertConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            conv_dim=(32,) * 7,
        )
        kmeans = KMeansUnits(rng.normal(size=(50, 64)).astype(np.float32))
        inventory = UnitInventory.create(HubertModel(config), 1, kmeans)
        encoder = ShardEncoder(inventory, ExtractionSettings())
        for start in range(0, count, 40):
            encoder.encode([item_of(path) for path in files[start : start + 40]])
    # Not getrusage: its figure takes over that of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


# --- what is measured on --------------------------------------------------------------------------
def write_speech(folder: Path, seconds: float) -> list[Path]:
    """Files of coloured noise with pauses, as long as LibriSpeech's.

    A quarter lasts from 2 to 10 s, the rest from 10 to 17 s.
    """
    rng, files, total = np.random.default_rng(0), [], 0.0
    while total < seconds:
        length = rng.uniform(2, 10) if rng.random() < 0.25 else rng.uniform(10, 17)
        white = rng.standard_normal(int(length * 16_000))
        loudness = np.repeat(rng.gamma(1.0, 1.0, int(length * 8) + 1), 2000)[: len(white)]
        wave = 0.05 * loudness * np.convolve(white, rng.uniform(-1, 1, 24), "same")
        files.append(folder / f"{len(files):04d}.flac")
        soundfile.write(files[-1], np.clip(wave, -1, 1), 16_000)
        total += length
    return files


def flops_per_second(model: HubertModel, seconds: int = 10) -> float:
    """FLOPs that the encoder needs for a second of audio."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        hidden_state(model, torch.zeros(1, seconds * SAMPLE_RATE, device=device))
    return counter.get_total_flops() / seconds


def make_inventory(files: list[Path], device: str) -> tuple[HubertModel, UnitInventory]:
    """HuBERT base at its published size with random weights; centroids out of its features."""
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(attn_implementation="sdpa")).eval()
    encoder = FeatureEncoder(model, LAYER, device)
    features = np.concatenate(
        [encoder.single(read_audio(path)) for path in files[: max(3, len(files) // 3)]]
    )
    chosen = np.random.default_rng(0).choice(
        len(features), CLUSTERS, replace=len(features) < CLUSTERS
    )
    inventory = UnitInventory.create(model, LAYER, KMeansUnits(features[chosen].copy()))
    return model.to(device), inventory


if __name__ == "__main__":
    main()
