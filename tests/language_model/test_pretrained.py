"""A published LLaMA from disk, with either kind of tokenizer, and what is wrong with others."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.llama_reference import train_tokenizer
from speechgpt_lib.corpora.world import lab_texts
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import Row, cross_modal_row
from speechgpt_lib.language_model.generation import parse_chain
from speechgpt_lib.language_model.model import adopt_model, expand_model, load_model, save_model
from speechgpt_lib.language_model.planning import NAMES
from speechgpt_lib.language_model.rows import row_to_tokens
from speechgpt_lib.language_model.vocabulary import LlamaVocabulary, Vocabulary
from speechgpt_lib.recipes.schema import LanguageModelSettings
from tests.builders import few_steps

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 4, "feed_forward": 48}


def published(folder: Path, vocabulary: int, dtype=torch.float16, **config) -> LlamaForCausalLM:
    """A small LLaMA as transformers writes it, in half precision and shards as if published."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2} | config
    shape = {NAMES[name]: size for name, size in SHAPE.items()}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **ids)).to(dtype)
    model.save_pretrained(folder, max_shard_size="100KB")
    return model


def load(folder: Path, vocabulary: int = 1500, **changes):
    values = SHAPE | {"vocabulary": vocabulary, "induction_start": False} | changes
    settings = LanguageModelSettings(**values, optimization=few_steps(1))
    with tempfile.TemporaryDirectory() as out:
        adopt_model(folder, Path(out), settings)
        return load_model(Path(out))


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "llama-tiny"
    published(folder, 1500)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(1500, 2000))
    return folder


def fast_tokenizer() -> Tokenizer:
    """As LLaMA 3's: byte-level BPE without a prefix blank, special tokens at the end.

    One of them is put before every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lab_texts(0, 200), trainer)
    special = ("<|begin_of_text|>", "<|end_of_text|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama3") / "llama-fast"
    tokenizer = fast_tokenizer()
    pieces = tokenizer.get_vocab_size()
    ends = {"bos_token_id": pieces - 2, "eos_token_id": [pieces - 1, pieces - 3]}
    published(folder, pieces + 5, **ends)  # more embeddings than pieces
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_weights_come_whole_in_full_precision(sentencepiece_folder: Path) -> None:
    assert len(list(sentencepiece_folder.glob("model-*.safetensors"))) > 1, "in shards"
    model, vocabulary = load(sentencepiece_folder)
    original = LlamaForCausalLM.from_pretrained(
        sentencepiece_folder, dtype=torch.float32, local_files_only=True
    )
    assert isinstance(vocabulary, LlamaVocabulary) and vocabulary.size == 1500
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) and tensor.dtype == torch.float32


def test_a_fast_tokenizer_keeps_its_ids(fast_folder: Path, tmp_path: Path) -> None:
    tokenizer = fast_tokenizer()
    model, before = load(fast_folder, tokenizer.get_vocab_size() + 5)
    assert isinstance(before, Vocabulary) and before.size == model.config.vocab_size
    after = before.expand(20, "feed")
    assert after.text_size == before.size and after.marker("<sosp>") == before.size + 20
    ids = after.encode_text("what is two plus three")
    assert ids == tokenizer.encode("what is two plus three", add_special_tokens=False).ids
    assert after.decode_text(ids) == "what is two plus three"
    assert after.begin == tokenizer.token_to_id("<|begin_of_text|>") and after.end in after.stops
    said = after.encode_text("say <|begin_of_text|>")
    assert after.begin not in said, "text never becomes a special token"
    expand_model(model, before, after, 0)
    save_model(model, after, tmp_path / "m")
    again, vocabulary = load_model(tmp_path / "m")
    assert vocabulary.begin == after.begin
    assert vocabulary.encode_text("the dog") == after.encode_text("the dog")
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    row = cross_modal_row("asr", "Write it.", "the dog", np.array([3, 4]))
    prompt, answer = vocabulary.encode_row(row)
    assert prompt[0] == after.begin and vocabulary.units_in(prompt).tolist() == [3, 4]
    assert vocabulary.decode_text(answer) == "the dog" and answer[-1] == vocabulary.marker("<eos>")


def test_the_meta_prefix_is_not_learned(sentencepiece_folder: Path) -> None:
    """With `loss: all` everything after the release's meta prefix counts; else the answer alone."""
    vocabulary = LlamaVocabulary.from_file(sentencepiece_folder / "tokenizer.model").expand(
        20, "feed"
    )
    row = cross_modal_row("asr", "Write it.", "the dog", np.array([3, 4]), "release")
    prompt, answer = vocabulary.encode_row(row)
    prefix, _ = vocabulary.encode_row(Row(()))
    assert prompt[: len(prefix)] == prefix and prompt[len(prefix)] == vocabulary.marker("[Human]")
    learned = len(prompt) - len(prefix) + len(answer)
    weights = row_to_tokens(row, vocabulary, "all").weights
    assert weights == [0.0] * len(prefix) + [1.0] * learned
    weights = row_to_tokens(row, vocabulary, "answer").weights
    assert weights == [0.0] * len(prompt) + [1.0] * len(answer)


def test_a_spelled_chain_is_parsed(sentencepiece_folder: Path) -> None:
    """Where the chain's markers are no tokens, they are told by their spelling."""
    vocabulary = LlamaVocabulary.from_file(sentencepiece_folder / "tokenizer.model").expand(
        20, "feed"
    )
    ids = vocabulary.encode_text("[tq] what is it; [ta] the dog; [ua]")
    ids += vocabulary.encode_units(np.array([1, 2, 3]))
    whole = [*ids, *vocabulary.encode_text("<eoa>")]
    chain = parse_chain(whole, vocabulary, "speech_speech")
    assert (chain.tq, chain.ta) == ("what is it", "the dog")
    assert chain.ua.tolist() == [1, 2, 3] and chain.wellformed
    assert parse_chain([*whole, vocabulary.marker("<eos>")], vocabulary, "speech_speech").wellformed
    assert not parse_chain(ids, vocabulary, "speech_speech").wellformed
    assert not parse_chain(whole, vocabulary, "speech_text").wellformed
    assert not parse_chain([], vocabulary, "speech_speech").wellformed
    # A written answer ends where speech would begin, and a written question needs no chain.
    unspoken = vocabulary.encode_text("what is it; [ta] the dog; [ua]")
    for form in ("speech_text", "text_text"):
        chain = parse_chain(unspoken, vocabulary, form)
        assert (chain.tq, chain.ta, chain.ua) == ("what is it", "the dog", None)
        assert chain.wellformed and not chain.cut
    assert not parse_chain(unspoken, vocabulary, "speech_speech").wellformed
    plain = parse_chain(vocabulary.encode_text("the dog<eoa>"), vocabulary, "text_text")
    assert (plain.tq, plain.ta, plain.wellformed) == ("", "the dog", True)
    # The release's own chains have no marker before the transcript.
    bare = vocabulary.encode_text("what is it; [ta] the dog; [ua]")
    bare += [*vocabulary.encode_units(np.array([1, 2, 3])), *vocabulary.encode_text("<eoa>")]
    chain = parse_chain(bare, vocabulary, "speech_speech")
    assert (chain.tq, chain.ta, chain.wellformed, chain.cut) == (
        "what is it",
        "the dog",
        True,
        False,
    )
    assert parse_chain(bare[:-3], vocabulary, "speech_speech").cut


def test_a_stage2_model_of_the_released_layout_is_read(
    sentencepiece_folder: Path, tmp_path: Path
) -> None:
    """Pieces, units and six markers; another number of units is no such model."""
    shutil.copy(sentencepiece_folder / "tokenizer.model", tmp_path)
    original = published(tmp_path, 1500 + 20 + 6)
    (tmp_path / "out").mkdir()
    adopt_model(tmp_path, tmp_path / "out", None, 20, "feed")
    model, vocabulary = load_model(tmp_path / "out")
    assert vocabulary.inventory == "feed" and vocabulary.size == 1526
    assert torch.equal(model.lm_head.weight, original.lm_head.weight.float())
    with pytest.raises(UserError, match="has 1526 embeddings; .* 21 units and markers are 1527"):
        adopt_model(tmp_path, tmp_path / "out", None, 21, "feed")


def broken(folder: Path, damage: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if damage == "another architecture":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    elif damage == "damaged configuration":
        (folder / "config.json").write_text("{")
    elif damage == "no tokenizer":
        (folder / "tokenizer.model").unlink()
    elif damage == "tokenizer of another model":
        (folder / "tokenizer.model").write_bytes(train_tokenizer(1400, 2000))
    elif damage == "a shard is cut short":
        shard = next(folder.glob("model-*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-50])
    elif damage == "a shard is missing":
        next(folder.glob("model-*.safetensors")).unlink()
    elif damage == "no weights":
        for path in folder.glob("model*"):
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("another architecture", "type gpt2, expected llama"),
        ("damaged configuration", "config.json is not valid JSON"),
        ("no tokenizer", "no tokenizer in .*tokenizer.model.*tokenizer.json"),
        ("tokenizer of another model", "1500 embeddings; its pieces are 1400"),
        ("a shard is cut short", "model-0.*safetensors was not read"),
        ("a shard is missing", "lacks model-0.*safetensors, one of"),
        ("no weights", "weights in .* were not read"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, sentencepiece_folder: Path, damage: str, message: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in sentencepiece_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    broken(folder, damage)
    with pytest.raises(UserError, match=message):
        load(folder)


class Hostile:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_hostile_weights_run_nothing(tmp_path: Path, sentencepiece_folder: Path) -> None:
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((sentencepiece_folder / name).read_bytes())
    torch.save({"lm_head.weight": Hostile(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin was not read"):
        load(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_older_weights_in_one_pickle_are_read_too(
    tmp_path: Path, sentencepiece_folder: Path
) -> None:
    original, _ = load(sentencepiece_folder)
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((sentencepiece_folder / name).read_bytes())
    halves = {name: tensor.half() for name, tensor in original.state_dict().items()}
    torch.save(halves, tmp_path / "pytorch_model.bin")
    model, _ = load(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True)
    )


def test_the_recipe_must_be_about_this_model(sentencepiece_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="language_model.layers is 3, the model in .* has 2"):
        load(sentencepiece_folder, layers=3)
    with pytest.raises(UserError, match="no config.json in .*none"):
        load(tmp_path / "none")
