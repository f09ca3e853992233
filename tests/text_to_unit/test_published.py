"""fairseq's text-to-unit model without fairseq: equal beams, and files that are refused."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.text_to_unit.published import load_vocabulary
from speechgpt_lib.text_to_unit.synthesis import TextToUnit, from_fairseq
from tests.foreign.hostile import Hostile


@pytest.fixture(scope="module")
def files(reference: Path) -> Path:
    return reference / "fixtures" / "fairseq" / "text2unit"


@pytest.fixture(scope="module")
def model(files: Path) -> TextToUnit:
    return from_fairseq(
        files / "text2unit.pt", files / "spm.model", "feed", files / "binary" / "dict.unit.txt"
    )


@pytest.fixture(scope="module")
def sentences(files: Path) -> list[dict]:
    return json.loads((files / "expected.json").read_text())["sentences"]


def written(units: np.ndarray) -> str:
    return " ".join(f"<{unit}>" for unit in units)


def test_source_ids_are_fairseqs(model: TextToUnit, sentences: list[dict]) -> None:
    for sentence in sentences:
        assert model.vocabulary.encode_text(sentence["text"]) == sentence["src_ids"]
    assert (model.vocabulary.unit_count, model.vocabulary.first_unit) == (50, 6)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_best_beams_are_fairseqs(model: TextToUnit, sentences: list[dict], batch_size: int) -> None:
    made = model.generate([s["text"] for s in sentences], beams=5, batch_size=batch_size)
    assert list(map(written, made)) == [s["translate"] for s in sentences]


def test_its_own_number_of_beams_is_the_releases(model: TextToUnit, sentences: list[dict]) -> None:
    made = model.generate([s["text"] for s in sentences])
    assert list(map(written, made)) == [s["translate"] for s in sentences]


def test_save_and_load(model: TextToUnit, sentences: list[dict], tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    loaded = TextToUnit.load(tmp_path / "m", "feed")
    texts = [s["text"] for s in sentences]
    assert list(map(written, loaded.generate(texts))) == list(map(written, model.generate(texts)))
    files = ["model.safetensors", "spm.model", "text_to_unit.json"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == files
    with pytest.raises(UserError, match="inventory"):
        TextToUnit.load(tmp_path / "m", "other")


def test_texts_that_are_refused(model: TextToUnit) -> None:
    for text in ("", "   ", "the <12> cat", "犬"):
        assert model.refuses(text), text
        with pytest.raises(UserError):
            model.generate([text])
    assert "too long" in model.refuses("the cat " * 600)


def changed(files: Path, tmp_path: Path, change) -> Path:
    """The checkpoint with `change(its model, its configuration, all of it)` done to it."""
    checkpoint = _load(files / "text2unit.pt")
    change(checkpoint["model"], checkpoint["cfg"]["model"], checkpoint)
    torch.save(checkpoint, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def _load(path: Path) -> dict:
    from speechgpt_lib.foreign.checkpoints import load_torch_checkpoint, plain

    loaded = load_torch_checkpoint(path)
    return {"model": dict(loaded["model"]), "cfg": {"model": dict(plain(loaded["cfg"]["model"]))}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m, _, __: m.pop("decoder.layers.1.fc2.weight"),
            "lacks decoder.layers.1.fc2.weight",
        ),
        (lambda m, _, __: m.update({"decoder.extra": torch.zeros(1)}), "holds decoder.extra"),
        (
            lambda m, _, __: m.update({"decoder.layers.0.fc1.bias": torch.zeros(3)}),
            r"shape \(3,\), expected \(64,\)",
        ),
        (lambda _, c, __: c.update(encoder_normalize_before=True), "encoder_normalize_before=True"),
        (lambda _, c, __: c.update(share_all_embeddings=False), "share_all_embeddings=False"),
        (lambda _, c, __: c.pop("encoder_embed_dim"), "without encoder_embed_dim"),
        (lambda _, __, whole: whole.pop("cfg"), "neither cfg.model nor args"),
        (lambda _, __, whole: whole.pop("model"), "expected a `model`"),
    ],
)
def test_other_models_are_refused(files: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_fairseq(changed(files, tmp_path, change), files / "spm.model", "feed")


def test_older_files_keep_their_configuration_in_args(
    files: Path, tmp_path: Path, sentences: list[dict]
) -> None:
    path = changed(files, tmp_path, lambda _, c, whole: whole.update(args=c) or whole.pop("cfg"))
    made = from_fairseq(path, files / "spm.model", "feed").generate([sentences[2]["text"]])
    assert written(made[0]) == sentences[2]["translate"]


def test_files_of_two_models_are_refused(files: Path, tmp_path: Path) -> None:
    lines = (files / "binary" / "dict.unit.txt").read_text().splitlines()
    lines[70], lines[71] = lines[71], lines[70]
    (tmp_path / "dict.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 71"):
        load_vocabulary(files / "spm.model", tmp_path / "dict.txt")
    (tmp_path / "dict.txt").write_text("\n".join(lines[:50]))
    with pytest.raises(UserError, match="line 51: 'nothing'"):
        load_vocabulary(files / "spm.model", tmp_path / "dict.txt")
    (tmp_path / "other.model").write_bytes(tiny_spm(units=40))
    with pytest.raises(UserError, match="shape"):
        from_fairseq(files / "text2unit.pt", tmp_path / "other.model", "feed")


def test_a_pickle_that_would_run_code_is_refused(files: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"model": {}, "cfg": Hostile(mark)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not read"):
        from_fairseq(tmp_path / "evil.pt", files / "spm.model", "feed")
    assert not mark.exists()


def test_no_sentencepiece_models(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"<html>", b"version https://git-lfs"):
        (tmp_path / "spm.model").write_bytes(content)
        with pytest.raises(UserError):
            load_vocabulary(tmp_path / "spm.model")
    with pytest.raises(UserError, match="no file"):
        load_vocabulary(tmp_path / "none")


@functools.cache
def tiny_spm(units: int = 50) -> bytes:
    """A SentencePiece model with the layout of the published one."""
    written = io.BytesIO()
    symbols = ["<lang:unit>", "<lang:en>", *(f"<{k}>" for k in range(units))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a bird can sing"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=4 + len(symbols) + 24,
        hard_vocab_limit=False,
        user_defined_symbols=symbols,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return written.getvalue()
