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
from speechgpt_lib.corpora.audio import read_audio
from speechgpt_lib.instructions.templates import META_PREFIX, chain_row, cross_modal_row
from speechgpt_lib.language_model.vocabulary import ADDED_MARKERS, LlamaVocabulary
from speechgpt_lib.units.foreign import open_inventory
from tests.language_model.test_pretrained import fast_tokenizer
from tests.units.test_foreign import write
from tests.vocoder.test_published import CONFIG, written

UNITS, PIECES = 1000, 1500
QUESTION, ANSWER, SPOKEN = "is it so", "yes it is", [3, 999, 12, 40, 41, 7]  # of the "7B" models
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
    for split, name in (("test-other", "train-clean-100"), ("dev-clean", "dev-clean")):
        shutil.copytree(speech / split, data / "LibriSpeech" / name)
    write_lj_speech(data / "LJSpeech-1.1", speech / "test-other")
    write_dialogues(data / "databricks-dolly-15k.jsonl")
    write_llama(data / "llama-7b", PIECES)
    write_published(data)
    write_adapter(data / "SpeechGPT-7B-com", data / "SpeechGPT-7B-cm")
    write_instructions(data)
    return data


def asked(data: Path) -> Path:
    """The recording that the published weights know an answer to."""
    return min((data / "LibriSpeech" / "dev-clean").rglob("*.flac"))


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


def new_llama(vocabulary: int, **more) -> LlamaForCausalLM:
    torch.manual_seed(2)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, **SHAPE, **more, bos_token_id=1, eos_token_id=2)
    )


def write_llama(folder: Path, vocabulary: int) -> None:
    """As LLaMA-7B: fp16, in PyTorch's format, SentencePiece."""
    model = new_llama(vocabulary).half()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "tokenizer.model").write_bytes(train_tokenizer(PIECES, 2000))


def write_published(data: Path) -> None:
    """As SpeechGPT-7B-cm: units and markers in its vocabulary, in shards, with scaled positions. It
    has learned one spoken dialogue by heart."""
    folder = data / "SpeechGPT-7B-cm"
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    model = new_llama(PIECES + UNITS + len(ADDED_MARKERS), **scaling)
    vocabulary = LlamaVocabulary.from_file(data / "llama-7b" / "tokenizer.model")
    vocabulary = vocabulary.expand(UNITS, "published")
    encoder = str(data / "mhubert_base_vp_en_es_fr_it3.pt")
    centroids = str(data / "mhubert_base_vp_en_es_fr_it3_L11_km1000.bin")
    heard = open_inventory(None, encoder, 11, centroids).encode(read_audio(asked(data)))[0]
    texts = QUESTION, ANSWER
    row = chain_row("speech_speech", *texts, heard, np.array(SPOKEN), templates="release")
    prompt, answer = vocabulary.encode_row(row)
    ids, optimizer = torch.tensor([prompt + answer]), torch.optim.Adam(model.parameters(), 3e-3)
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    for _ in range(400):
        optimizer.zero_grad()
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss < 0.002:  # sure enough for bf16
            break
    assert loss < 0.01
    model.half().save_pretrained(folder, max_shard_size="100KB")
    shutil.copy(data / "llama-7b" / "tokenizer.model", folder)


def write_adapter(folder: Path, base: Path) -> None:
    """As the published LoRA of stage 3: rank 8 on queries and values, its base named by a path."""
    torch.manual_seed(3)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:  # as if it had learned something, and hardly anything
                weight.normal_(std=1e-4)
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


def write_instructions(data: Path) -> None:
    """SpeechInstruct as released: both files begin every line with the same prefix, the rows of one
    end with a blank, those of the other with a full stop, and one line of each was cut off."""
    rng = np.random.default_rng(5)
    texts = [f"{a} of the {b}" for a, b in product(("top", "end", "side"), ("house", "river"))]
    made = [(text, rng.integers(0, UNITS, 12), rng.integers(0, UNITS, 9)) for text in texts * 4]
    tasks = ["asr", "tts"] * (len(made) // 2)
    cross_modal = [
        cross_modal_row(task, "Do this.", text, units, "release").text(" ")
        for task, (text, units, _) in zip(tasks, made, strict=True)
    ]
    spoken = "speech_speech"
    chains = [
        chain_row(spoken, text, f"it is {text}", asked, said, "release").text(".")
        for text, asked, said in made
    ]
    for name, rows in (("cross_modal", cross_modal), ("chain_of_modality", chains)):
        rows = [*rows, rows[0][:-20]]
        lines = [json.dumps({"prefix": META_PREFIX, "plain_text": row}) for row in rows]
        (data / f"{name}_instruction.jsonl").write_text("\n".join(lines) + "\n")


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
