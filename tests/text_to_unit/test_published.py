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
    assert list(map(written, model.generate([s["text"] for s in sentences]))) == [
        s["translate"] for s in sentences
    ]


def test_save_and_load(model: TextToUnit, sentences: list[dict], tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    loaded = TextToUnit.load(tmp_path / "m", "feed")
    texts = [s["text"] for s in sentences]
    assert [u.tolist() for u in loaded.generate(texts)] == [
        u.tolist() for u in model.generate(texts)
    ]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "model.safetensors",
        "spm.model",
        "text_to_unit.json",
    ]
    with pytest.raises(UserError, match="inventory"):
        TextToUnit.load(tmp_path / "m", "other")


def test_texts_that_are_refused(model: TextToUnit) -> None:
    for text in ("", "   ", "the <12> cat", "犬"):
        assert model.refuses(text), text
        with pytest.raises(UserError):
            model.generate([text])
    assert "too long" in model.refuses("the cat " * 600)


def changed(files: Path, tmp_path: Path, change) -> Path:
    checkpoint = _load(files / "text2unit.pt")
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def _load(path: Path) -> dict:
    from speechgpt_lib.foreign.checkpoints import load_torch_checkpoint
    from speechgpt_lib.foreign.stubs import plain

    loaded = load_torch_checkpoint(path)
    return {"model": dict(loaded["model"]), "cfg": {"model": dict(plain(loaded["cfg"]["model"]))}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["model"].pop("decoder.layers.1.fc2.weight"),
            "lacks decoder.layers.1.fc2.weight",
        ),
        (lambda c: c["model"].update({"decoder.extra": torch.zeros(1)}), "holds decoder.extra"),
        (
            lambda c: c["model"].update({"decoder.layers.0.fc1.bias": torch.zeros(3)}),
            r"shape \(3,\), expected \(64,\)",
        ),
        (
            lambda c: c["cfg"]["model"].update(encoder_normalize_before=True),
            "encoder_normalize_before=True",
        ),
        (
            lambda c: c["cfg"]["model"].update(share_all_embeddings=False),
            "share_all_embeddings=False",
        ),
        (lambda c: c["cfg"]["model"].pop("encoder_embed_dim"), "without encoder_embed_dim"),
        (lambda c: c.pop("cfg"), "neither cfg.model nor args"),
        (lambda c: c.pop("model"), "expected a `model`"),
    ],
)
def test_other_models_are_refused(files: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_fairseq(changed(files, tmp_path, change), files / "spm.model", "feed")


def test_older_files_keep_their_configuration_in_args(
    files: Path, tmp_path: Path, sentences: list[dict]
) -> None:
    path = changed(files, tmp_path, lambda c: c.update(args=c.pop("cfg")["model"]))
    assert (
        written(from_fairseq(path, files / "spm.model", "feed").generate([sentences[2]["text"]])[0])
        == sentences[2]["translate"]
    )


def test_files_of_two_models_are_refused(files: Path, tmp_path: Path) -> None:
    lines = (files / "binary" / "dict.unit.txt").read_text().splitlines()
    lines[70], lines[71] = lines[71], lines[70]
    (tmp_path / "dict.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 71"):
        load_vocabulary(files / "spm.model", tmp_path / "dict.txt")
    (tmp_path / "dict.txt").write_text("\n".join(lines[:50]))
    with pytest.raises(UserError, match="50 entries"):
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
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "page": b"<html>",
        "pointer": b"version https://git-lfs",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            load_vocabulary(tmp_path / name)
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
