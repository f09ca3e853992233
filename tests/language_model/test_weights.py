"""Weights come from disk a tensor at a time: every layout that people have, each family, nothing
twice in memory, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import inference, weights
from speechgpt_lib.language_model.adapters import folder_id, model_id
from speechgpt_lib.language_model.families import FAMILIES, config_class, model_class, read_config
from speechgpt_lib.language_model.inference import device_map, load_to_answer, weight_bytes
from speechgpt_lib.language_model.model import expand_model, expand_saved, load_model, save_model
from speechgpt_lib.language_model.planning import Shape
from speechgpt_lib.language_model.weights import (
    copy_weights,
    empty_model,
    load_weights,
    weight_files,
)
from tests.builders import tiny_language_model, tiny_vocabulary

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def published(folder: Path, family: str = "llama", tied: bool = False, dtype=torch.bfloat16):
    """A small model of a family, as transformers saves it: in shards with an index."""
    config = config_class(family)
    more = {"head_dim": 8} if family == "qwen3" else {}
    torch.manual_seed(0)
    settings = config(**SIZES, **more, tie_word_embeddings=tied)
    made = model_class(settings)(settings).to(dtype)
    made.save_pretrained(folder, max_shard_size="20KB")
    return made


def as_bin(folder: Path, shards: bool) -> None:
    """The weights of a folder in PyTorch's own format instead, whole or in two shards."""
    index = folder / "model.safetensors.index.json"
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    index.unlink(missing_ok=True)
    names = sorted(tensors)
    if not shards:
        return torch.save(tensors, folder / "pytorch_model.bin")
    halves = names[::2], names[1::2]
    where = {}
    for k, half in enumerate(halves, 1):
        file = f"pytorch_model-0000{k}-of-00002.bin"
        torch.save({name: tensors[name] for name in half}, folder / file)
        where |= dict.fromkeys(half, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))


def same(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name].to(ours[name].dtype)) for name in theirs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_transformers_computes(tmp_path, family, tied) -> None:
    original = published(tmp_path, family, tied, torch.float32)
    loaded = load_weights(read_config(tmp_path), tmp_path, torch.float32)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, original.eval()(ids).logits)
    table, head = loaded.get_input_embeddings().weight, loaded.lm_head.weight
    assert (table is head) == tied and not any(p.is_meta for p in loaded.parameters())
    assert Shape.of_config(loaded.config).hidden_size == 32


@pytest.mark.parametrize("layout", ["shards", "whole", "bin", "bin shards", "bare names"])
def test_every_layout(tmp_path: Path, layout: str) -> None:
    original = published(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    if layout == "whole":
        original.save_pretrained(tmp_path / "one")
        folder = tmp_path / "one"
    else:
        folder = tmp_path
    if layout.startswith("bin"):
        as_bin(folder, shards=layout == "bin shards")
    if layout == "bare names":  # saved without the head's part of the names
        tensors = {}
        for file in folder.glob("*.safetensors"):
            tensors |= load_file(file)
            file.unlink()
        (folder / "model.safetensors.index.json").unlink()
        bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        save_file(bare, folder / "model.safetensors")
    assert same(load_weights(read_config(folder), folder, torch.float32), original)


@pytest.mark.parametrize("zipped", [False, True])
def test_tensors_that_share_their_memory(tmp_path: Path, zipped: bool) -> None:
    """As a tied model pickles them, in files from before PyTorch 1.6 and after."""
    original = published(tmp_path, tied=True)
    for file in tmp_path.glob("model*"):
        file.unlink()
    tensors = original.state_dict()
    big = torch.randn(2, 300, 32).bfloat16()  # two halves of one storage
    tensors |= {"model.embed_tokens.weight": big[1], "lm_head.weight": big[0]}
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    for order in (1, -1):
        torch.save(
            dict(list(tensors.items())[::order]), path, _use_new_zipfile_serialization=zipped
        )
        loaded = load_weights(original.config, tmp_path, torch.bfloat16)
        assert torch.equal(loaded.get_input_embeddings().weight, big[1])


def test_a_tied_table_under_the_name_of_the_other(tmp_path: Path) -> None:
    original = published(tmp_path, tied=True)
    tensors = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert same(load_weights(original.config, tmp_path, torch.float32), original)
    assert folder_id(tmp_path) == model_id(original)


def test_weights_are_copied_in_parts_with_the_precision_they_have(tmp_path, monkeypatch) -> None:
    original = published(tmp_path / "a", tied=True)
    monkeypatch.setattr(weights, "PART_BYTES", 15_000)
    (tmp_path / "b").mkdir()
    copy_weights(empty_model(original.config), tmp_path / "a", tmp_path / "b")
    files = weight_files(tmp_path / "b")
    assert len(files) > 2 and sorted(files) == sorted((tmp_path / "b").glob("*.safetensors"))
    tensors = {name: t for file in files for name, t in load_file(file).items()}
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    assert "lm_head.weight" not in tensors, "tied: one table"
    assert same(load_weights(original.config, tmp_path / "b", torch.float32), original)
    monkeypatch.undo()
    (tmp_path / "c").mkdir()
    copy_weights(empty_model(original.config), tmp_path / "b", tmp_path / "c")
    assert [file.name for file in weight_files(tmp_path / "c")] == ["model.safetensors"]


def test_a_saved_model_is_the_same_file_when_it_is_copied(tmp_path: Path) -> None:
    vocabulary = tiny_vocabulary()
    save_model(tiny_language_model(vocabulary), vocabulary, tmp_path / "a")
    (tmp_path / "b").mkdir()
    copy_weights(empty_model(read_config(tmp_path / "a")), tmp_path / "a", tmp_path / "b")
    one, other = (tmp_path / name / "model.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_an_id_is_told_from_the_files_alone(tmp_path: Path) -> None:
    for tied in (False, True):
        original = published(tmp_path / str(tied), tied=tied)
        assert folder_id(tmp_path / str(tied)) == model_id(original)


# --- to answer -----------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path: Path) -> Path:
    vocabulary = tiny_vocabulary()
    save_model(tiny_language_model(vocabulary), vocabulary, tmp_path / "model")
    return tmp_path / "model"


def test_weights_are_rounded_as_the_recipe_says(saved: Path) -> None:
    full, _ = load_to_answer(saved)
    rounded, vocabulary = load_to_answer(saved, "bf16")
    assert same(full, load_model(saved)[0])
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    assert vocabulary.unit_count == 20
    shape = Shape.of_config(full.config)
    stored = sum(p.numel() for p in full.parameters())
    assert abs(weight_bytes(shape, "fp32") - 4 * stored) < 0.02 * 4 * stored  # but for biases


def test_too_little_memory_is_said_beforehand(saved: Path, monkeypatch) -> None:
    monkeypatch.setattr(inference, "free_memory", lambda device: 1000)
    monkeypatch.setattr(inference, "load_model", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"takes 0\.0 GB .* on cpu 0\.0 GB are free: set inference"):
        load_to_answer(saved)


def test_layers_are_shared_out_over_gpus(monkeypatch) -> None:
    # Here are no GPUs, which accelerate would notice.
    monkeypatch.setattr("accelerate.utils.modeling.get_max_memory", lambda most: dict(most))
    whole = tiny_language_model(tiny_vocabulary(), layers=6)
    model, layers = empty_model(whole.config), len(whole.model.layers)
    size = 4 * sum(p.numel() for p in whole.parameters())
    found = device_map(model, torch.float32, {0: int(0.8 * size), 1: size})
    assert set(found.values()) == {0, 1}
    places = [
        {place for module, place in found.items() if f"{module}.".startswith(f"model.layers.{k}.")}
        for k in range(layers)
    ]
    assert all(len(place) <= 1 for place in places), "no layer is cut"
    with pytest.raises(UserError, match="the GPUs hold"):
        device_map(model, torch.float32, {0: size // 4, 1: size // 4})


# --- what is wrong -------------------------------------------------------------------------------
def test_a_model_that_is_no_decoder(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"type bert, expected llama or .* \(mistral, qwen2, qwen3\)"
    ):
        read_config(tmp_path)


def broken(folder: Path, damage: str) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if damage == "half a shard":
        shards[0].write_bytes(shards[0].read_bytes()[:-1000])
    elif damage == "no shard":
        shards[1].unlink()
    elif damage == "no weights":
        for file in (*shards, index):
            file.unlink()
    elif damage == "leads away":
        known = json.loads(index.read_text())
        known["weight_map"] = {name: "../x.safetensors" for name in known["weight_map"]}
        index.write_text(json.dumps(known))
    else:
        tensors = load_file(shards[0])
        name = next(iter(tensors))
        if damage == "nan":
            tensors[name] = tensors[name] * float("nan")
        elif damage == "another shape":
            tensors[name] = tensors[name].flatten()[:3].clone()
        elif damage == "strange":
            tensors["strange"] = torch.ones(2)
        elif damage == "lacks one":
            del tensors[name]
        save_file(tensors, shards[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("half a shard", r"model-00001.* was not read"),
        ("no shard", r"lacks model-00002.*, one of \d+ files that model.safetensors.index.json"),
        ("no weights", "the weights in .* were not read, there are none: expected model.safet"),
        ("leads away", r"names '\.\./x\.safetensors', which is no file beside it"),
        ("nan", "NaN or infinite"),
        ("another shape", r"has shape \(3,\), expected"),
        ("strange", "holds strange, for which there is no place"),
        ("lacks one", "are not whole: .* are missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, damage: str, message: str) -> None:
    original = published(tmp_path)
    broken(tmp_path, damage)
    with pytest.raises(UserError, match=message):
        load_weights(original.config, tmp_path, torch.float32)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    original = published(tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trace",)

    torch.save({"lm_head.weight": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="was not read"):
        load_weights(original.config, tmp_path, torch.float32)
    assert not (tmp_path / "trace").exists()


# --- memory --------------------------------------------------------------------------------------
MEASURE = """
import resource, sys
from pathlib import Path
import torch
from speechgpt_lib.language_model.families import read_config
from speechgpt_lib.language_model.weights import copy_weights, empty_model, load_weights
folder, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if what == "import":
    out.mkdir()
    copy_weights(empty_model(read_config(folder)), folder, out)
else:
    model = load_weights(read_config(folder), folder, torch.bfloat16)
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_no_model_is_in_memory_twice(tmp_path: Path, kind: str) -> None:
    """LLaMA-7B's widths with 2 of its 32 layers: 1.3 GB.  An import needs a part of it, to load it
    takes its bytes and little more."""
    config = config_class("llama")(num_hidden_layers=2)  # transformers' defaults are LLaMA-7B's
    model = empty_model(config)
    folder = tmp_path / "model"
    folder.mkdir()
    config.save_pretrained(folder)
    tensors = {n: torch.zeros(t.shape, dtype=torch.float16) for n, t in model.state_dict().items()}
    size = sum(t.nbytes for t in tensors.values())
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    del tensors
    taken = {}
    for what in ("import", "load"):
        words = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out"), what]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        before, after = map(int, done.stdout.split())
        taken[what] = after - before
    assert size > 1.2e9
    assert taken["import"] < 0.8 * size, f"{taken['import'] / size:.2f} of the model's bytes"
    assert taken["load"] < 1.15 * size + 0.3e9, f"{taken['load'] / size:.2f} of the model's bytes"


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_expanded_as_in_memory(tmp_path: Path, tied: bool) -> None:
    """In the precision it has; the model in memory is the one that is rounded to it."""
    vocabulary = tiny_vocabulary(units=0)
    torch.manual_seed(0)
    settings = config_class("llama")(
        **SIZES | {"vocab_size": vocabulary.size}, tie_word_embeddings=tied
    )
    model = model_class(settings)(settings).to(torch.bfloat16)
    save_model(model, vocabulary, tmp_path / "a")
    before, after = expand_saved(tmp_path / "a", tmp_path / "b", "an inventory", 20, seed=3)
    found, there = load_model(tmp_path / "b", torch.bfloat16)
    assert (before.size, there.size) == (vocabulary.size, after.size) and after.unit_count == 20
    wanted = expand_model(model.float(), before, after, 3).to(torch.bfloat16).state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(found.state_dict()[name], wanted[name]) for name in wanted)
