"""A miniature of the real thing: all files that `small` and `release` read, in their genuine
formats and under their own names, a thousandth of their size; the speech is LibriSpeech's."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import sklearn.cluster
import torch
from peft import LoraConfig, get_peft_model
from transformers import HubertConfig, HubertModel, LlamaConfig, LlamaForCausalLM

from benchmarks.llama_reference import train_tokenizer
from speechgpt_lib.language_model.vocabulary import ADDED_MARKERS
from tests.language_model.test_pretrained import fast_tokenizer
from tests.units.test_foreign import write
from tests.vocoder.test_published import CONFIG, written

UNITS, PIECES = 1000, 1500
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def build_miniature(data: Path, speech: Path) -> Path:
    """Fill `data`; `speech` has LibriSpeech's test-other and dev-clean."""
    data.mkdir(parents=True)
    write_units(data)
    write_vocoder(data)
    write_small_model(data / "SmolLM2-135M")
    write_llama(data / "llama-7b", PIECES)
    write_llama(data / "SpeechGPT-7B-cm", PIECES + UNITS + len(ADDED_MARKERS), shards=True)
    write_adapter(data / "SpeechGPT-7B-com", data / "SpeechGPT-7B-cm")
    write_dialogues(data / "databricks-dolly-15k.jsonl")
    for split, name in (("test-other", "train-clean-100"), ("dev-clean", "dev-clean")):
        shutil.copytree(speech / split, data / "LibriSpeech" / name)
    write_lj_speech(data / "LJSpeech-1.1", speech / "test-other")
    return data


def write_units(data: Path) -> None:
    """mHuBERT as fairseq's trainer lays it out, and its k-means as joblib wrote it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    positions = {"num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}
    layers = {"num_hidden_layers": 12, "conv_dim": (24,) * 7}
    encoder = HubertModel(HubertConfig(**shape, **positions, **layers)).eval()
    write(data / "mhubert_base_vp_en_es_fr_it3.pt", encoder, {"encoder_layers": 12})
    centers = np.random.default_rng(0).normal(size=(UNITS, 32))
    kmeans = sklearn.cluster.MiniBatchKMeans(UNITS, random_state=0, n_init=1, max_iter=1)
    kmeans.fit(centers)
    joblib.dump(kmeans, data / "mhubert_base_vp_en_es_fr_it3_L11_km1000.bin")


def write_vocoder(data: Path) -> None:
    """fairseq's unit HiFi-GAN."""
    sizes = {"num_embeddings": UNITS, "upsample_initial_channel": 32}
    checkpoint, config = written(data / "vocoder", CONFIG | sizes)
    checkpoint.rename(data / "g_00500000")
    config.rename(data / "config.json")


def write_small_model(folder: Path) -> None:
    """As SmolLM2-135M: tied embeddings, grouped queries, bf16, one file, a fast tokenizer."""
    tokenizer = fast_tokenizer()
    pieces = tokenizer.get_vocab_size()
    ends = {"bos_token_id": pieces - 2, "eos_token_id": pieces - 1}
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=pieces, tie_word_embeddings=True, **SHAPE, **ends)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "config.json").read_text())
    settings["torch_dtype"] = settings.pop("dtype", "bfloat16")  # as older versions wrote it
    (folder / "config.json").write_text(json.dumps(settings))


def write_llama(folder: Path, vocabulary: int, shards: bool = False) -> None:
    """As LLaMA-7B: fp16, in PyTorch's format or in shards of safetensors, SentencePiece."""
    torch.manual_seed(2)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}} if shards else {}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SHAPE, **ends, **scaling)).half()
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "1GB")
    if not shards:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "tokenizer.model").write_bytes(train_tokenizer(PIECES, 2000))


def write_adapter(folder: Path, base: Path) -> None:
    """As the published LoRA of stage 3: rank 8 on queries and values, its base named by a path."""
    torch.manual_seed(3)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    adapted.save_pretrained(folder, save_embedding_layers=False)


def write_dialogues(path: Path) -> None:
    """Dolly's records, one of them about a text beside it, one too long to be spoken."""
    things = "house door river horse tree light".split()
    places = "field room hall town barn".split()
    records = [
        {"instruction": f"Where is the {a}?", "context": "", "response": f"The {a} is in the {b}."}
        for a, b in product(things, places)
    ]
    records += [{"instruction": "Sum it up.", "context": "A text.", "response": "It is short."}]
    records += [{"instruction": "Tell a story.", "context": "", "response": "And then " * 40}]
    lines = [json.dumps(record | {"category": "open_qa"}) for record in records]
    path.write_text("\n".join(lines) + "\n")


def write_lj_speech(root: Path, librispeech: Path) -> None:
    """One reader's chapters of LibriSpeech in LJSpeech's layout."""
    import soundfile

    (root / "wavs").mkdir(parents=True)
    lines = []
    chapter = min(librispeech.glob("*/*"))
    for line in next(chapter.glob("*.trans.txt")).read_text().splitlines():
        name, _, text = line.partition(" ")
        wave, rate = soundfile.read(chapter / f"{name}.flac")
        soundfile.write(root / "wavs" / f"LJ{name}.wav", wave, rate)
        lines.append(f"LJ{name}|{text.capitalize()}.|{text.capitalize()}.")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
