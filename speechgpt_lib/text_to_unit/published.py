"""fairseq's text-to-unit model (checkpoint, dictionaries, SentencePiece model) → a `TextToUnit`.

    0 <s>   1 <pad>   2 </s>   3 <unk>   4 <lang:unit>   5 <lang:en>   6 … K+5 units   then text

Needs no fairseq.  SentencePiece's ids are the model's; the decoder starts from `</s>`.  The model
is FSMT, transformers' port of fairseq's Transformer; its names are fairseq's behind `model.`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from sentencepiece import SentencePieceProcessor

from speechgpt_lib.errors import UserError, reading, reads
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint, plain
from speechgpt_lib.foreign.tensors import (
    check_described,
    check_sizes,
    check_tensors,
    checkpoint_tensors,
)
from speechgpt_lib.runs.artefacts import read_text
from speechgpt_lib.text_to_unit.model import UnitIds

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
UNUSED = re.compile(
    r"\.version$|embed_positions|^decoder\.output_projection\."
    r"|^encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
)
SAME = "encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads".split()
GEOMETRY = {"encoder_embed_dim": "d_model"} | {name: name for name in SAME}  # fairseq → FSMT
GEOMETRY |= {f"{side}_ffn_embed_dim": f"{side}_ffn_dim" for side in ("encoder", "decoder")}
# What FSMT has no place for.
INEXPRESSIBLE = """
    encoder_normalize_before decoder_normalize_before encoder_learned_pos decoder_learned_pos
    layernorm_embedding no_token_positional_embeddings adaptive_softmax_cutoff adaptive_input
    no_cross_attention cross_self_attention
""".split()


@dataclass(frozen=True)
class SentencePieceVocabulary(UnitIds):
    """The joint vocabulary; its text side is a SentencePiece model, `serialized` in its file."""

    serialized: bytes
    processor: SentencePieceProcessor
    unit_count: int
    first_unit: int
    pad, begin, end = 1, 2, 2

    def encode_text(self, text: str) -> list[int]:
        """Text → ids, the end marker last; raises UserError for one with no known character."""
        ids, first_text = self.processor.encode(text), self.first_unit + self.unit_count
        if len(self.units_in(ids)):
            raise UserError(f"text {text[:40]!r} contains units such as <12>: give plain text")
        if not any(i >= first_text for i in ids):
            raise UserError(f"no text to speak in {text[:40]!r}: give words of characters it knows")
        return [*ids, self.end]


def load_vocabulary(spm: Path, dictionary: Path | None = None) -> SentencePieceVocabulary:
    """The vocabulary of a published `spm.model`; a `dictionary` (`dict.unit.txt`) must agree.

    Raises UserError: files missing or damaged, specials or units not where the release has them.
    """
    check_is_no_text(spm)
    serialized, ask = spm.read_bytes(), "is this the spm.model of text2unit?"
    with reading(spm, ask, "is no SentencePiece model"):
        processor = SentencePieceProcessor(model_proto=serialized)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    if pieces[:4] != SPECIALS or "<0>" not in pieces:
        found, wanted = " ".join(pieces[:4]), " ".join(SPECIALS)
        raise UserError(f"{spm} starts with {found}, expected {wanted}, then units <0>, …: {ask}")
    first = pieces.index("<0>")
    count = next(k for k in itertools.count() if pieces[first + k : first + k + 1] != [f"<{k}>"])
    if dictionary is not None:  # lines of piece and count
        if not dictionary.is_file():
            raise UserError(f"no file at {dictionary}: give the dict.unit.txt published with {spm}")
        lines = read_text(dictionary).splitlines()
        found = [line.rsplit(" ", 1)[0] for line in lines if line.strip()]
        pairs = itertools.zip_longest(found, pieces[4:], fillvalue="nothing")
        for k, (theirs, ours) in enumerate(pairs, 1):
            if theirs != ours:
                which = f"line {k}: {theirs!r}, but {spm} has {ours!r} there"
                raise UserError(f"{dictionary}, {which}: files of two different models")
    return SentencePieceVocabulary(serialized, processor, count, first)


@reads("is no text-to-unit model", "is it fairseq's text2unit.pt?")
def model_from_fairseq(
    checkpoint: Path, vocabulary: SentencePieceVocabulary
) -> tuple[transformers.FSMTForConditionalGeneration, dict[str, Any]]:
    """The Transformer in a fairseq checkpoint, and the settings that `build_fsmt` takes.

    Raises UserError: damaged or dangerous file, another kind of model, wrong tensors.
    """
    loaded = load_torch_checkpoint(checkpoint)
    settings = _settings(loaded, checkpoint)
    check_sizes(settings, checkpoint)
    settings["vocabulary"] = vocabulary.processor.get_piece_size()
    check_described(lambda: build_fsmt(settings), checkpoint)
    tensors, model = checkpoint_tensors(loaded, "model", checkpoint), build_fsmt(settings)
    own = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    found, wanted = (
        {name: side[name] for name in side if not UNUSED.search(name)} for side in (tensors, own)
    )
    check_tensors(found, wanted, checkpoint)
    model.load_state_dict({f"model.{name}": found[name] for name in found}, strict=False)
    model.tie_weights()
    return model, settings


def _settings(loaded: dict, checkpoint: Path) -> dict[str, Any]:
    """What `build_fsmt` needs, from the checkpoint's `cfg.model`, or `args` in older files."""
    found = plain(loaded.get("cfg") or {}).get("model") or plain(loaded.get("args") or {})
    if not isinstance(found, dict) or not found:
        raise UserError(f"{checkpoint} has neither cfg.model nor args: did fairseq-train write it?")
    expected = "expected a post-norm `transformer` of text to units with one embedding"
    if missing := [name for name in GEOMETRY if name not in found]:
        kind = found.get("_name") or found.get("arch") or "?"
        raise UserError(f"{checkpoint} is of kind {kind!r} without {missing[0]}: {expected}")
    needed = {"decoder_embed_dim": found["encoder_embed_dim"], "share_all_embeddings": True}
    strange = [name for name in INEXPRESSIBLE if found.get(name)]
    if strange := strange + [name for name in needed if found.get(name) != needed[name]]:
        raise UserError(f"{checkpoint} has {strange[0]}={found.get(strange[0])!r}: {expected}")
    return {ours: int(found[theirs]) for theirs, ours in GEOMETRY.items()} | {
        "activation_function": str(found.get("activation_fn", "relu")),
        "scale_embedding": not found.get("no_scale_embedding", False),
        "max_position_embeddings": int(found.get("max_source_positions", 1024)),
    }


def build_fsmt(settings: dict[str, Any]) -> transformers.FSMTForConditionalGeneration:
    """The model, weights yet to be filled in; `settings` as `model_from_fairseq` gives them."""
    shape = dict(settings)
    size = shape.pop("vocabulary")
    shape |= {"src_vocab_size": size, "tgt_vocab_size": size}  # FSMT's markers are fairseq's
    return transformers.FSMTForConditionalGeneration(
        transformers.FSMTConfig(tie_word_embeddings=True, **shape)
    ).eval()
