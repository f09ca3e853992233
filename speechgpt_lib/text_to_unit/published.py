"""fairseq's text-to-unit model (checkpoint, dictionaries, SentencePiece model) → a `TextToUnit`.

    0 <s>   1 <pad>   2 </s>   3 <unk>   4 <lang:unit>   5 <lang:en>   6 … K+5 units   then text

Needs no fairseq.  SentencePiece's ids are the ids of the model, so a source is `encode(text)` and
`</s>`; the decoder starts from `</s>`.  The model is FSMT, transformers' port of fairseq's
Transformer; its names are fairseq's with `model.` before them.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
from transformers import FSMTConfig, FSMTForConditionalGeneration

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint
from speechgpt_lib.foreign.stubs import plain
from speechgpt_lib.foreign.tensors import check_tensors, checkpoint_tensors
from speechgpt_lib.text_to_unit.model import UnitIds

MODEL_FILE = "spm.model"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
UNUSED = re.compile(
    r"\.version$|embed_positions|^decoder\.output_projection\."
    r"|^encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
)
GEOMETRY = {  # fairseq → FSMT
    "encoder_embed_dim": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "encoder_ffn_embed_dim": "encoder_ffn_dim",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
}
# What FSMT has no place for.
INEXPRESSIBLE = """
    encoder_normalize_before decoder_normalize_before encoder_learned_pos decoder_learned_pos
    layernorm_embedding no_token_positional_embeddings adaptive_softmax_cutoff adaptive_input
    no_cross_attention cross_self_attention
""".split()


@dataclass(frozen=True)
class SentencePieceVocabulary(UnitIds):
    """The joint vocabulary; its text side is the SentencePiece model in `serialized`."""

    serialized: bytes
    unit_count: int
    first_unit: int = 6
    pad: ClassVar[int] = 1
    begin: ClassVar[int] = 2
    end: ClassVar[int] = 2

    @functools.cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """The SentencePiece model, ready to encode."""
        return sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.processor.get_piece_size()

    def encode_text(self, text: str) -> list[int]:
        """Text → ids, the end marker last.

        Raises UserError for an empty text, and for one with no known character at all.
        """
        ids, first_text = self.processor.encode(text), self.first_unit + self.unit_count
        if len(self.units_in(ids)):
            raise UserError(f"text {text[:40]!r} contains units such as <12>: give plain text")
        if not any(i >= first_text for i in ids):
            found = f"found {text[:40]!r}, expected a word in characters that the model knows"
            raise UserError(f"there is no text to speak: {found}")
        return [*ids, self.end]

    def save(self, folder: Path) -> None:
        """Write `spm.model`."""
        (folder / MODEL_FILE).write_bytes(self.serialized)


def load_vocabulary(spm: Path, dictionary: Path | None = None) -> SentencePieceVocabulary:
    """The vocabulary of a published `spm.model`; a `dictionary` (`dict.unit.txt`) must agree.

    Raises UserError: files missing or damaged, specials or units not where the release has them.
    """
    check_is_no_text(spm)
    serialized, ask = spm.read_bytes(), "is this the spm.model of text2unit?"
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{spm} is no SentencePiece model ({one_line(error)}): {ask}") from None
    if tuple(pieces[:4]) != SPECIALS:
        found, wanted = " ".join(pieces[:4]), " ".join(SPECIALS)
        raise UserError(f"{spm} starts with {found}, expected {wanted}: {ask}")
    if "<0>" not in pieces:
        raise UserError(f"{spm} has no units <0>, <1>, …: {ask}")
    first, count = pieces.index("<0>"), 0
    while pieces[first + count : first + count + 1] == [f"<{count}>"]:
        count += 1
    if dictionary is not None:
        _compare(dictionary, spm, pieces[len(SPECIALS) :])
    return SentencePieceVocabulary(serialized, count, first)


def _compare(dictionary: Path, spm: Path, pieces: list[str]) -> None:
    """Refuse a dictionary (lines of piece and count) that lists other pieces than `spm`."""
    try:
        lines = dictionary.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        wanted = "give the dict.unit.txt published beside the checkpoint"
        raise UserError(f"{dictionary} can't be read ({one_line(error)}): {wanted}") from None
    found = [line.rsplit(" ", 1)[0] for line in lines if line.strip()]
    for k, (theirs, ours) in enumerate(zip(found, pieces, strict=False), 1):
        if theirs != ours:
            which = f"line {k}: {theirs!r}, but {spm} has {ours!r} there"
            raise UserError(f"{dictionary}, {which}: files of two different models")
    if len(found) != len(pieces):
        which = f"has {len(found)} entries, {spm} {len(pieces)} besides its specials"
        raise UserError(f"{dictionary} {which}: files of two different models")


def model_from_fairseq(
    checkpoint: Path, vocabulary_size: int
) -> tuple[FSMTForConditionalGeneration, dict[str, Any]]:
    """The Transformer in a fairseq checkpoint, and the settings that `build_fsmt` takes.

    Raises UserError: damaged or dangerous file, another kind of model, wrong tensors.
    """
    loaded = load_torch_checkpoint(checkpoint)
    settings = _settings(loaded, checkpoint) | {"vocabulary": vocabulary_size}
    found, model = checkpoint_tensors(loaded, "model", checkpoint), build_fsmt(settings)
    wanted = {name.removeprefix("model."): part for name, part in model.state_dict().items()}
    wanted, found = _used(wanted), _used(found)
    check_tensors(found, wanted, checkpoint)
    model.load_state_dict({f"model.{name}": found[name] for name in found}, strict=False)
    model.tie_weights()
    return model, settings


def _used(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if not UNUSED.search(name)}


def _settings(loaded: dict, checkpoint: Path) -> dict[str, Any]:
    """What `build_fsmt` needs, from the checkpoint's `cfg.model`, or `args` in older files."""
    found = plain(loaded.get("cfg") or {}).get("model") or plain(loaded.get("args") or {})
    if not isinstance(found, dict) or not found:
        raise UserError(f"{checkpoint} has neither cfg.model nor args: did fairseq-train write it?")
    wanted = "expected a post-norm `transformer` of text to units with one embedding"
    if missing := [name for name in GEOMETRY if name not in found]:
        kind = found.get("_name") or found.get("arch") or "?"
        raise UserError(f"{checkpoint} is of kind {kind!r} without {missing[0]}: {wanted}")
    strange = [name for name in INEXPRESSIBLE if found.get(name)]
    if found["encoder_embed_dim"] != found.get("decoder_embed_dim"):
        strange.append("decoder_embed_dim")
    if not found.get("share_all_embeddings"):
        strange.append("share_all_embeddings")
    if strange:
        raise UserError(f"{checkpoint} has {strange[0]}={found.get(strange[0])!r}: {wanted}")
    return {ours: int(found[theirs]) for theirs, ours in GEOMETRY.items()} | {
        "activation_function": str(found.get("activation_fn", "relu")),
        "scale_embedding": not found.get("no_scale_embedding", False),
        "max_position_embeddings": int(found.get("max_source_positions", 1024)),
    }


def build_fsmt(settings: dict[str, Any]) -> FSMTForConditionalGeneration:
    """The model, weights yet to be filled in; `settings` as `model_from_fairseq` gives them."""
    shape = dict(settings)
    size = shape.pop("vocabulary")
    dropouts = "dropout attention_dropout activation_dropout encoder_layerdrop decoder_layerdrop"
    config = FSMTConfig(
        langs=["en", "unit"],
        src_vocab_size=size,
        tgt_vocab_size=size,
        bos_token_id=0,
        pad_token_id=SentencePieceVocabulary.pad,
        eos_token_id=SentencePieceVocabulary.end,
        decoder_start_token_id=SentencePieceVocabulary.begin,
        forced_eos_token_id=None,
        tie_word_embeddings=True,
        is_encoder_decoder=True,
        **shape,
        **dict.fromkeys(dropouts.split(), 0.0),
    )
    model = FSMTForConditionalGeneration(config).eval()
    model.generation_config.max_length = None  # each call says how long
    return model
