"""What a GPU makes, against what the CPU makes of the same; left out where there is no GPU."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, LlamaForCausalLM

from speechgpt_lib.language_model import inference, stages
from speechgpt_lib.language_model.adapters import add_lora
from speechgpt_lib.language_model.generation import generate
from speechgpt_lib.language_model.likelihood import log_likelihoods
from speechgpt_lib.language_model.model import save_model
from speechgpt_lib.language_model.planning import Shape, full_memory, lora_memory
from speechgpt_lib.language_model.timing import random_rows
from speechgpt_lib.recipes.schema import (
    ExtractionSettings,
    LoraSettings,
    Optimization,
    StageSettings,
    VocoderSettings,
)
from speechgpt_lib.training.devices import matmul_peak, resolve_device, resolve_precision
from speechgpt_lib.training.log import read_metrics
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.extract import Counts, ShardEncoder
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.synthesis import Vocoder
from tests.builders import few_steps, noise, tiny_language_model, tiny_vocabulary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ROOT = Path(__file__).parents[1]
SHAPE = Shape(8000, 512, 8, heads=8, feed_forward=1408, tied=True, key_value_heads=4)


def test_auto_means_the_gpu_in_bf16() -> None:
    assert resolve_device("auto") == "cuda" and resolve_precision("auto", "cuda") == "bf16"
    assert 1e12 < matmul_peak("cuda", "no") < matmul_peak("cuda", "bf16") < 5e15


# --- units ---------------------------------------------------------------------------------------
def wide_encoder() -> HubertModel:
    """Of HuBERT's published widths, with few layers."""
    torch.manual_seed(0)
    return HubertModel(HubertConfig(num_hidden_layers=3, attn_implementation="sdpa")).eval()


def test_features_are_those_of_the_cpu() -> None:
    encoder, waves = wide_encoder(), [noise(s, k) for k, s in enumerate((1.3, 4.0, 2.2))]
    there, here = FeatureEncoder(encoder, 3, "cuda")(waves), FeatureEncoder(encoder, 3)(waves)
    for a, b in zip(there, here, strict=True):
        assert a.dtype == torch.float32 and a.device.type == "cuda"
        assert (a.cpu() - b).norm() < 1e-5 * b.norm()


def test_units_of_a_batch_are_those_of_each_file() -> None:
    encoder = wide_encoder()
    features = FeatureEncoder(encoder, 3).single(noise(4.0, 9))
    inventory = UnitInventory.create(encoder, 3, KMeansUnits(features[::4].copy()))
    waves = [noise(0.5 + 0.37 * k, k) for k in range(10)]
    found = {}
    for device in ("cpu", "cuda"):
        shard, counts = ShardEncoder(inventory, ExtractionSettings(), device), Counts()
        found[device] = shard._encode_batch(waves, counts, [])
    apart = frames = 0
    for a, b in zip(found["cpu"], found["cuda"], strict=True):
        a, b = (np.repeat(row["units"], row["durations"]) for row in (a, b))
        apart, frames = apart + int((a != b).sum()), frames + len(a)
    assert apart <= counts.near_ties and frames == counts.frames


def test_in_bf16_misses_are_counted() -> None:
    encoder = wide_encoder()
    features = FeatureEncoder(encoder, 3).single(noise(4.0, 9))
    inventory = UnitInventory.create(encoder, 3, KMeansUnits(features[::4].copy()))
    shard, counts = ShardEncoder(inventory, ExtractionSettings(precision="bf16"), "cuda"), Counts()
    shard._encode_batch([noise(2.0, k) for k in range(4)], counts, [0, 2])
    assert 0 <= counts.missed_frames < counts.checked_frames == counts.frames // 2


# --- vocoder -------------------------------------------------------------------------------------
def published_vocoder(device: str, precision: str = "fp32") -> Vocoder:
    settings = VocoderSettings(optimization=few_steps(1), duration_optimization=few_steps(1))
    torch.manual_seed(0)
    generator, durations = UnitGenerator(50, settings), DurationPredictor(50)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(1.6)  # as loud as speech
    return Vocoder(generator, durations, "i", settings, device=device, precision=precision)


def test_speech_is_that_of_the_cpu_alone_in_a_batch_and_in_a_stream() -> None:
    """A GPU's convolutions round their input to 10 bits."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50, n) for n in (40, 7, 90, 41)]
    lengths = [rng.integers(1, 4, len(row)) for row in rows]
    here = published_vocoder("cpu").synthesize_many(rows, lengths)
    vocoder = published_vocoder("cuda")
    there = vocoder.synthesize_many(rows, lengths)
    for row, length, a, b in zip(rows, lengths, here, there, strict=True):
        assert a.std() > 1e-3 and np.abs(a - b).max() < 1e-3
        assert np.abs(vocoder.synthesize(row, length) - b).max() < 1e-3
    stream = vocoder.stream()
    pieces = [stream.push(unit) for unit in rows[2]] + [stream.finish()]
    assert np.abs(np.concatenate(pieces) - vocoder.synthesize(rows[2])).max() < 1e-3
    half = published_vocoder("cuda", "bf16").synthesize_many(rows, lengths)
    assert max(np.abs(a - b).max() for a, b in zip(here, half, strict=True)) < 0.05


# --- language model ------------------------------------------------------------------------------
def fit(folder: Path, device: str, steps: int = 6, **changes) -> list[dict]:
    """The metrics log of a short training of a tiny model."""
    vocabulary = tiny_vocabulary()
    model = tiny_language_model(vocabulary).to(device)
    of_stage = {k: changes.pop(k) for k in {*StageSettings.model_fields} & {*changes}}
    optimization = few_steps(steps, **{"learning_rate": 3e-3} | changes)
    settings = {"tokens_per_batch": 512, "block": 128, "optimization": optimization} | of_stage
    rows = random_rows(vocabulary.size, 64, 4096, all_count=False)
    stage = StageSettings(**settings)
    stages.fit(model, stages.always(rows), stage, folder, TrainingOptions(0, device))
    return read_metrics(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": "isolated"},
        {"packing": "concatenated", "checkpointing": True},
        {"packing": "isolated", "accumulation": 2},
        {"packing": "isolated", "attention": "eager"},
        {"matrix_learning_rate": 3e-3},
    ],
    ids=lambda changes: "-".join(map(str, changes)) or "plain",
)
def test_losses_are_those_of_the_cpu(tmp_path: Path, changes: dict) -> None:
    here, there = (fit(tmp_path / device, device, **changes) for device in ("cpu", "cuda"))
    for a, b in zip(here, there, strict=True):
        # Muon's iteration is in bf16 on a GPU.
        assert a["loss"] == pytest.approx(
            b["loss"], abs=2e-2 if "matrix_learning_rate" in changes else 1e-4
        )
    assert there[-1]["mfu"] > 0 and there[-1]["memory_mb"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["none", "isolated"])
def test_in_bf16_and_compiled_losses_are_near(tmp_path: Path, packing: str) -> None:
    exact = fit(tmp_path / "fp32", "cuda", packing=packing)
    half = fit(tmp_path / "bf16", "cuda", packing=packing, precision="bf16")
    compiled = fit(tmp_path / "c", "cuda", packing=packing, precision="bf16", compile=True)
    for a, b, c in zip(exact, half, compiled, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=0.05)
        assert b["loss"] == pytest.approx(c["loss"], abs=0.05)


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", "cuda")
    vocabulary = tiny_vocabulary()
    rows = random_rows(vocabulary.size, 64, 4096, all_count=False)
    asked = []

    def stop(row: dict) -> None:
        if row["step"] == 3 and not asked:
            asked.append(row)
            os.kill(os.getpid(), 15)

    for _ in range(2):
        settings = {"tokens_per_batch": 512, "block": 128}
        stage = StageSettings(optimization=few_steps(6, learning_rate=3e-3), **settings)
        model = tiny_language_model(vocabulary).to("cuda")
        options = TrainingOptions(0, "cuda", on_log=stop)
        try:
            stages.fit(model, stages.always(rows), stage, tmp_path / "cut", options)
        except KeyboardInterrupt:
            assert len(asked) == 1
    again = read_metrics(tmp_path / "cut" / "metrics.jsonl")
    assert [row["step"] for row in again] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(whole, again, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_answers_are_those_of_the_cpu(tmp_path: Path) -> None:
    vocabulary = tiny_vocabulary()
    model = tiny_language_model(vocabulary)
    prompts = [[vocabulary.begin, *vocabulary.encode_text(text)] for text in ("the dog", "a cat")]
    here = generate(model, vocabulary, prompts, 12), log_likelihoods(model, prompts)
    model.to("cuda")
    there = generate(model, vocabulary, prompts, 12), log_likelihoods(model, prompts)
    assert here[0] == there[0] and here[1] == pytest.approx(there[1], abs=1e-3)
    save_model(model, vocabulary, tmp_path / "model")
    for weights in ("fp32", "bf16"):
        loaded, _ = inference.load_to_answer(tmp_path / "model", weights, "cuda")
        assert loaded.device.type == "cuda"
        assert generate(loaded, vocabulary, prompts, 12)


def test_one_sharded_process_is_one_alone(tmp_path: Path) -> None:
    """FSDP2 by NCCL: a sharded step, a checkpoint in parts, and the weights joined again."""
    vocabulary = tiny_vocabulary()
    save_model(tiny_language_model(vocabulary), vocabulary, tmp_path / "model")
    command = [sys.executable, "-m", "tests.training.sharded_on_gpu", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **options, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "losses.json").read_text())
    assert found["sharded no"] == pytest.approx(found["alone no"], abs=1e-5)
    assert found["sharded bf16"] == pytest.approx(found["alone bf16"], abs=0.05)
    assert found["joined no"] == 0 and found["joined bf16"] == 0


# --- memory --------------------------------------------------------------------------------------
@pytest.mark.parametrize("packing", ["concatenated", "isolated"])
@pytest.mark.parametrize(
    ("lora", "checkpointing"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_the_plan_is_what_torch_allocates(
    tmp_path: Path, lora: bool, checkpointing: bool, packing: str
) -> None:
    """Within 15 %, at 16,384 tokens at once in bf16."""
    tokens, settings = 16_384, LoraSettings(rank=8, base="bf16", targets=("q_proj", "v_proj"))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = LlamaForCausalLM(SHAPE.config(attn_implementation="sdpa")).to("cuda")
    if lora:
        add_lora(model, settings, 0)
    optimization = Optimization(steps=3, learning_rate=1e-3, precision="bf16")
    options = {"packing": packing, "checkpointing": checkpointing, "tokens_per_batch": tokens}
    stage = StageSettings(optimization=optimization, **options)
    rows = stages.always(random_rows(SHAPE.vocabulary, 1024, 4 * tokens, all_count=True))
    stages.fit(model, rows, stage, tmp_path, TrainingOptions(0, "cuda"))
    peak = torch.cuda.max_memory_allocated() - before
    planned = full_memory(SHAPE, 1, tokens, checkpointing=checkpointing)
    if lora:
        planned = lora_memory(SHAPE, settings, tokens, checkpointing)
    assert planned.total == pytest.approx(peak, rel=0.15)
