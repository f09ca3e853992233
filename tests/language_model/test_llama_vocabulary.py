"""The released vocabulary: its ids against SentencePiece itself and against ids written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.instructions import records
from benchmarks.llama_reference import release_tokenizer, train_tokenizer
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.sets import record_to_row
from speechgpt_lib.instructions.templates import META_PREFIX, chain_row, cross_modal_row
from speechgpt_lib.language_model.model import expand_model, load_model, save_model
from speechgpt_lib.language_model.vocabulary import ADDED_MARKERS, LlamaVocabulary

GOLDEN = Path(__file__).parent / "golden" / "llama_ids.json"
UNITS = 1000


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "tokenizer.model"
    path.write_bytes(train_tokenizer())
    return path


@pytest.fixture(scope="module")
def vocabulary(model_file: Path) -> LlamaVocabulary:
    return LlamaVocabulary.from_file(model_file).expand(UNITS, "feed")


@pytest.fixture(scope="module")
def release(model_file: Path, vocabulary: LlamaVocabulary):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    names = (*(f"<{k}>" for k in range(UNITS)), *ADDED_MARKERS)
    return release_tokenizer(
        processor, {name: vocabulary.text_size + k for k, name in enumerate(names)}
    )


def ids_of(vocabulary: LlamaVocabulary, row) -> list[int]:
    prompt, answer = vocabulary.encode_row(row)
    return prompt + answer


def test_the_layout_of_the_released_model(vocabulary: LlamaVocabulary) -> None:
    assert vocabulary.text_size == 32_000
    assert vocabulary.encode_units(np.array([0, 999])) == [33_000, 32_000, 32_999, 33_001]
    assert [vocabulary.marker(name) for name in ADDED_MARKERS] == [
        33_000,
        33_001,
        33_002,
        33_003,
        33_004,
        33_005,
    ]
    assert vocabulary.size == 33_006
    assert vocabulary.units_in([1, 32_005, 33_000, 7]).tolist() == [5]


def test_ids_are_the_releases(vocabulary: LlamaVocabulary, release) -> None:
    for record in records(200, seed=3):
        row = record_to_row(record, "release")
        assert ids_of(vocabulary, row) == release(META_PREFIX + row.text())


def test_chains_too(vocabulary: LlamaVocabulary, release) -> None:
    row = chain_row(
        "speech_speech",
        "why is it so",
        "because: it is.",
        np.array([5, 6]),
        np.array([7, 999]),
        "release",
    )
    assert ids_of(vocabulary, row) == release(META_PREFIX + row.text())


WORDS = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs", "Z", "Cc"], exclude_characters="<>[]"),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=200)
@given(WORDS.map(" ".join), st.sampled_from(("asr", "tts")), st.integers(0, 2), st.data())
def test_any_text(vocabulary, release, text, task, blanks, data) -> None:
    text = text.replace(" ", " " * (1 + blanks)).replace("▁", "_")
    units = np.array(data.draw(st.lists(st.integers(0, UNITS - 1), min_size=1, max_size=5)))
    row = cross_modal_row(task, "Do it, please.", text, units, "release")
    assert ids_of(vocabulary, row) == release(META_PREFIX + row.text())


def test_ids_that_were_written_down(vocabulary: LlamaVocabulary) -> None:
    """Pinned: whatever changes these would change every row that a model was ever trained on."""
    golden = json.loads(GOLDEN.read_text())
    found = [
        ids_of(vocabulary, record_to_row(record, "release"))
        for record in records(len(golden), seed=11)
    ]
    assert found == [row[:-1] for row in golden]  # it ends in the published text form's blank


def test_forgetting_words_changes_nothing(
    vocabulary: LlamaVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechgpt_lib.language_model.vocabulary.REMEMBERED", 5)
    rows = [record_to_row(record, "release") for record in records(20, seed=5)]
    small = LlamaVocabulary(vocabulary.tokenizer, UNITS)
    assert [ids_of(small, row) for row in rows] == [ids_of(vocabulary, row) for row in rows]
    assert small._word.cache_info().currsize <= 5


def test_refusals(tmp_path: Path, vocabulary: LlamaVocabulary) -> None:
    with pytest.raises(UserError, match="no file"):
        LlamaVocabulary.from_file(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="SentencePiece"):
        LlamaVocabulary.from_file(tmp_path / "text")
    with pytest.raises(UserError, match="1000"):
        vocabulary.encode_units(np.array([1000]))
    from tests.text_to_unit.test_published import tiny_spm

    (tmp_path / "other.model").write_bytes(tiny_spm())
    with pytest.raises(UserError, match="no tokenizer of LLaMA"):
        LlamaVocabulary.from_file(tmp_path / "other.model")


def test_expansion_keeps_the_old_and_is_made_once(model_file: Path, tmp_path: Path) -> None:
    """A tiny LLaMA with LLaMA's own vocabulary, units and markers at the released places."""
    before = LlamaVocabulary.from_file(model_file)
    after = before.expand(UNITS, "feed")
    assert (before.size, after.size) == (32_000, 33_006) and after.expand(
        UNITS, "feed"
    ).size == after.size
    with pytest.raises(UserError, match="can't also hold"):
        after.expand(UNITS, "other")
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.tensor([[1, 500, 7000, 31_999]])
    with torch.inference_mode():
        old = model(ids).logits
        expand_model(model, before, after, seed=0)
        new = model(ids).logits
        head = model.get_output_embeddings().weight.clone()
        expand_model(model, before, after, seed=5)
    assert new.shape[-1] == 33_006 and torch.equal(old, new[..., :32_000])
    assert torch.equal(head, model.get_output_embeddings().weight), (
        "a second expansion changes nothing"
    )
    assert (
        model.get_input_embeddings().weight.data_ptr()
        != model.get_output_embeddings().weight.data_ptr()
    )
    assert len(torch.unique(model.get_input_embeddings().weight[32_000:], dim=0)) == 1006
    save_model(model, after, tmp_path / "m")
    loaded, vocabulary = load_model(tmp_path / "m")
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, new)
    assert (vocabulary.size, vocabulary.inventory) == (33_006, "feed")


def test_units_can_start_where_their_centroids_lie_and_tables_be_rounded(
    model_file: Path, tmp_path: Path
) -> None:
    before = LlamaVocabulary.from_file(model_file)
    after = before.expand(4, "feed")
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = LlamaForCausalLM(config)
    centroids = np.array([[0.0, 0, 1, 0], [0.0, 0.1, 1, 0], [5, 5, 0, 1], [5, 5.1, 0, 1]])
    expand_model(model, before, after, seed=0, centroids=centroids, multiple=128)
    table = model.get_input_embeddings().weight.detach()
    assert len(table) == 32_128
    units = table[32_000:32_004]
    near, far = (units[0] - units[1]).norm(), (units[0] - units[2]).norm()
    assert near < far / 5
    assert table[32_000:32_004].std().item() == pytest.approx(table[:32_000].std().item(), rel=0.3)
    save_model(model, after, tmp_path / "m")
    assert load_model(tmp_path / "m")[0].config.vocab_size == 32_128
