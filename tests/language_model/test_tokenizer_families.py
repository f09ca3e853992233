"""Every family of tokenizers has, in our rows, the ids that it gives a text by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import LlamaConfig

from speechgpt_lib.corpora.world import lab_texts
from speechgpt_lib.instructions.templates import CHAIN_FORMATS, chain_row, cross_modal_row
from speechgpt_lib.language_model.documents import question_prompt
from speechgpt_lib.language_model.vocabulary import (
    LlamaVocabulary,
    UnitVocabulary,
    Vocabulary,
    read_tokenizer,
)

SIZE = 700
WORDS = ["dog", "the dog is red", "a  b", "Łódź", "what is two plus three?", "[ta] dog", "12.5"]


def _prepend(tokenizer: Tokenizer) -> None:  # LLaMA 2, as converted from SentencePiece
    parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(parts)
    tokenizer.pre_tokenizer = None


def _metaspace(scheme: str):
    def put(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=True)
        tokenizer.decoder = decoders.Metaspace("▁", scheme)

    return put


def _bytes(prefix: bool):
    def put(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        tokenizer.decoder = decoders.ByteLevel()

    return put


def _digits(tokenizer: Tokenizer) -> None:  # LLaMA 3 cuts by a pattern first
    pattern = pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")
    parts = [pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()


FAMILIES = {  # how it writes blanks, whether each text after an added token gets one
    "prepend": (_prepend, True),
    "metaspace-always": (_metaspace("always"), True),
    "metaspace-first": (_metaspace("first"), False),
    "metaspace-never": (_metaspace("never"), False),
    "bytes": (_bytes(False), False),
    "bytes-prefix": (_bytes(True), True),
    "bytes-pattern": (_digits, False),
    "unigram": (_metaspace("always"), True),
}


def folder_of(family: str, folder: Path) -> Path:
    """A folder with a tokenizer.json of the family, which also states a longest text."""
    kind = models.Unigram() if family == "unigram" else models.BPE(unk_token="<unk>")
    tokenizer = Tokenizer(kind)
    (_metaspace("always") if family == "prepend" else FAMILIES[family][0])(tokenizer)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet() + ["▁", "Ł", "ó", "ź"])
    options = {"initial_alphabet": alphabet, "show_progress": False, "vocab_size": SIZE - 10}
    specials = ["<unk>", "<s>", "</s>"]
    if family == "unigram":
        trainer = UnigramTrainer(unk_token="<unk>", special_tokens=specials, **options)
    else:
        trainer = BpeTrainer(special_tokens=specials, **options)
    tokenizer.train_from_iterator(lab_texts(0, 300), trainer)
    FAMILIES[family][0](tokenizer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=12)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def read(folder: Path) -> tuple[Vocabulary, Tokenizer]:
    """What the project makes of the folder, and the tokenizer itself."""
    config = LlamaConfig(vocab_size=SIZE, bos_token_id=1, eos_token_id=2)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return read_tokenizer(folder, config).expand(20, "feed"), tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_the_tokenizers_own(tmp_path: Path, family: str) -> None:
    vocabulary, tokenizer = read(folder_of(family, tmp_path))
    puts_blank = FAMILIES[family][1]
    (tmp_path / "again").mkdir()
    vocabulary.save(tmp_path / "again")
    for found in (vocabulary, UnitVocabulary.load(tmp_path / "again")):
        for text in [*WORDS, " dog", "dog "]:
            own = tokenizer.encode(text, add_special_tokens=False).ids
            assert found.encode_text(text) == own, f"at the start: {text!r}"
    # Our markers and units as added tokens, which take the white space before them.
    names = [vocabulary.name(k) for k in range(SIZE, vocabulary.size)]
    tokenizer.add_tokens(
        [AddedToken(name, lstrip=True, rstrip=puts_blank, normalized=False) for name in names]
    )
    gap = SIZE - tokenizer.token_to_id("<0>")
    units = np.array([3, 19])
    rows = [chain_row(form, text, text, units, units) for form in CHAIN_FORMATS for text in WORDS]
    rows += [cross_modal_row(task, "Do it.", "the dog", units) for task in ("asr", "tts")]
    for row in (row for row in rows if "[ta] dog" not in row.text()):
        own = [k + gap * (k >= SIZE - gap) for k in tokenizer.encode(row.text()).ids]
        prompt, answer = vocabulary.encode_row(row)
        assert prompt + answer == [1, *own], row.text()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_goes_on_like_running_text(tmp_path: Path, family: str) -> None:
    vocabulary, tokenizer = read(folder_of(family, tmp_path))
    ids = question_prompt(vocabulary, "what is two plus three")
    whole = tokenizer.encode("what is two plus three ;", add_special_tokens=False).ids
    assert ids[0] == 1 and ids[1 : len(whole)] == whole[:-1]
    assert vocabulary.decode_text(ids[1:]) == "what is two plus three ;"


def test_a_folder_of_llama2_without_its_model_file(reference: Path) -> None:
    folder = reference / "faults" / "models"
    if not folder.is_dir():
        pytest.skip("the folder of reference material has no faults/models")
    config = LlamaConfig.from_pretrained(folder / "llama2_fast_legacy")
    found = read_tokenizer(folder / "llama2_fast_legacy", config)
    model = LlamaVocabulary.from_file(folder / "llama2.model")
    assert found.encode_text("dog") == [280]
    row = cross_modal_row("tts", "Say it.", "the dog is red", np.array([]))
    prompt, _ = found.expand(20, "feed").encode_row(row)
    assert [i for i in prompt if 280 <= i <= 284] == [280, 282]
    for text in WORDS:
        assert found.encode_text(text) == model.encode_text(text), text


def test_a_list_of_tokens_beside_the_tokenizer_is_not_taken_for_sentencepiece(
    tmp_path: Path,
) -> None:
    """LLaMA 3's folders have a `tokenizer.model` that is a text."""
    folder = folder_of("bytes", tmp_path)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert isinstance(read(folder)[0], Vocabulary)
