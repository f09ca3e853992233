"""fairseq's text-to-unit model (a `transformer` checkpoint, its dictionaries, a SentencePiece model) → a `TextToUnit`, without fairseq.

    0 <s>   1 <pad>   2 </s>   3 <unk>   4 <lang:unit>   5 <lang:en>   6 … K+5 units   then text pieces

SentencePiece's ids are the ids of the model, so a source is `encode(text)` and `</s>`; the decoder starts from `</s>`.  The model itself is
FSMT, transformers' port of fairseq's Transformer; its names are fairseq's with `model.` before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import torch
from transformers import FSMTConfig, FSMTForConditionalGeneration

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint
from speechgpt_lib.foreign.stubs import plain

MODEL_FILE = "spm.model"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
UNUSED = re.compile(
    r"\.version$|embed_positions|^encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$|^decoder\.output_projection\."
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
INEXPRESSIBLE = (  # what FSMT has no place for
    *(
        "encoder_normalize_before",
        "decoder_normalize_before",
        "encoder_learned_pos",
        "decoder_learned_pos",
        "layernorm_embedding",
    ),
    *(
        "no_token_positional_embeddings",
        "adaptive_softmax_cutoff",
        "adaptive_input",
        "no_cross_attention",
        "cross_self_attention",
    ),
)


@dataclass(frozen=True)
class SentencePieceVocabulary:
    """The joint vocabulary of a fairseq text-to-unit model: its text side is the SentencePiece model in `serialized`."""

    serialized: bytes
    unit_count: int
    first_unit: int = 6
    pad: ClassVar[int] = 1
    begin: ClassVar[int] = 2
    end: ClassVar[int] = 2

    @property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        if "_processor" not in self.__dict__:  # loading takes a while, and it can't be pickled
            object.__setattr__(
                self,
                "_processor",
                sentencepiece.SentencePieceProcessor(model_proto=self.serialized),
            )
        return self.__dict__["_processor"]

    @property
    def size(self) -> int:
        return self.processor.get_piece_size()

    def encode_text(self, text: str) -> list[int]:
        """Text → ids, the end marker last.  Raises UserError for an empty text, and for one with no known character at all."""
        ids = self.processor.encode(text)
        first_text = self.first_unit + self.unit_count
        if any(self.first_unit <= i < first_text for i in ids):
            raise UserError(
                f"text {text[:40]!r} contains units such as <12>: give plain text, units are what comes out"
            )
        if not any(i >= first_text for i in ids):
            raise UserError(
                f"there is no text to speak: found {text[:40]!r}, expected at least one word in characters that the model knows"
            )
        return [*ids, self.end]

    def units_in(self, ids: Iterable[int]) -> np.ndarray:
        """The units (n,) among ids, everything else left out."""
        return np.array(
            [i - self.first_unit for i in ids if 0 <= i - self.first_unit < self.unit_count],
            dtype=np.int64,
        )

    def save(self, folder: Path) -> None:
        (folder / MODEL_FILE).write_bytes(self.serialized)


def load_vocabulary(spm: Path, dictionary: Path | None = None) -> SentencePieceVocabulary:
    """The vocabulary of a published `spm.model`; with `dictionary` (`dict.unit.txt`), both must list the same pieces.

    Raises:
        UserError: files missing or damaged, specials or units not where the release has them, or the two disagree.
    """
    check_is_no_text(spm)
    serialized = Path(spm).read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{spm} is no SentencePiece model ({str(error).splitlines()[0][:120]}): get spm.model again"
        ) from None
    if tuple(pieces[:4]) != SPECIALS:
        raise UserError(
            f"{spm} starts with {' '.join(pieces[:4])}, expected {' '.join(SPECIALS)}: is this the spm.model of text2unit?"
        )
    if "<0>" not in pieces:
        raise UserError(f"{spm} has no units <0>, <1>, …: is this the spm.model of text2unit?")
    first, count = pieces.index("<0>"), 0
    while first + count < len(pieces) and pieces[first + count] == f"<{count}>":
        count += 1
    if dictionary is not None:
        _compare(dictionary, spm, pieces[len(SPECIALS) :])
    return SentencePieceVocabulary(serialized, count, first)


def _compare(dictionary: Path, spm: Path, pieces: list[str]) -> None:
    if not dictionary.is_file():
        raise UserError(
            f"no file at {dictionary}: give the dict.unit.txt published beside the checkpoint"
        )
    try:
        lines = dictionary.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{dictionary} is no text in UTF-8 ({error.reason} at byte {error.start}): get it again"
        ) from None
    found = [line.rsplit(" ", 1)[0] for line in lines if line.strip()]
    for k, (theirs, ours) in enumerate(zip(found, pieces, strict=False)):
        if theirs != ours:
            raise UserError(
                f"{dictionary}, line {k + 1}: {theirs!r}, but {spm} has {ours!r} there: files of two different models"
            )
    if len(found) != len(pieces):
        raise UserError(
            f"{dictionary} has {len(found)} entries, {spm} {len(pieces)} besides its specials: files of two different models"
        )


def model_from_fairseq(
    checkpoint: Path, vocabulary_size: int
) -> tuple[FSMTForConditionalGeneration, dict[str, Any]]:
    """The Transformer in a fairseq checkpoint, ready to generate, and the settings that `build_fsmt` takes.

    Raises:
        UserError: damaged or dangerous file, another kind of model, tensors missing or of the wrong shape.
    """
    loaded = load_torch_checkpoint(checkpoint)
    settings = _settings(loaded, checkpoint) | {"vocabulary": vocabulary_size}
    tensors = loaded.get("model")
    if not isinstance(tensors, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in tensors.values()
    ):
        raise UserError(
            f"{checkpoint} holds {', '.join(map(str, list(loaded)[:5]))}: expected a `model` with tensors"
        )
    tensors = {name: tensor.float() for name, tensor in tensors.items() if not UNUSED.search(name)}
    return fill(build_fsmt(settings), tensors, checkpoint), settings


def _settings(loaded: dict, checkpoint: Path) -> dict[str, Any]:
    """What `build_fsmt` needs, from the checkpoint's own configuration (`cfg.model`, or `args` in older files)."""
    configuration = plain(loaded.get("cfg") or {}).get("model") or plain(loaded.get("args") or {})
    if not isinstance(configuration, dict) or not configuration:
        raise UserError(
            f"{checkpoint} has neither cfg.model nor args: expected a checkpoint that fairseq-train wrote"
        )
    missing = [name for name in GEOMETRY if name not in configuration]
    if missing:
        kind = configuration.get("_name") or configuration.get("arch") or "?"
        raise UserError(
            f"{checkpoint} is a model of kind {kind!r} without {missing[0]}: expected a `transformer` of text to units"
        )
    strange = [name for name in INEXPRESSIBLE if configuration.get(name)]
    if configuration["encoder_embed_dim"] != configuration.get("decoder_embed_dim"):
        strange.append("decoder_embed_dim")
    if not configuration.get("share_all_embeddings"):
        strange.append("share_all_embeddings")
    if strange:
        found = f"{strange[0]}={configuration.get(strange[0])!r}"
        raise UserError(
            f"{checkpoint} has {found}, which can't be expressed here: a post-norm transformer with one embedding is expected"
        )
    settings = {ours: int(configuration[theirs]) for theirs, ours in GEOMETRY.items()}
    settings["activation_function"] = str(configuration.get("activation_fn", "relu"))
    settings["scale_embedding"] = not configuration.get("no_scale_embedding", False)
    settings["max_position_embeddings"] = int(configuration.get("max_source_positions", 1024))
    return settings


def build_fsmt(settings: dict[str, Any]) -> FSMTForConditionalGeneration:
    """The model with weights yet to be filled in; `settings` as `_settings` gives them, with the size of the `vocabulary`."""
    size = settings["vocabulary"]
    dropouts = dict.fromkeys(
        (
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "encoder_layerdrop",
            "decoder_layerdrop",
        ),
        0.0,
    )
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
        **{name: value for name, value in settings.items() if name != "vocabulary"},
        **dropouts,
    )
    model = FSMTForConditionalGeneration(config).eval()
    model.generation_config.max_length = None  # each call says how long
    return model


def fill(
    model: FSMTForConditionalGeneration, tensors: Mapping[str, torch.Tensor], where: Path
) -> FSMTForConditionalGeneration:
    expected = {
        name.removeprefix("model."): tensor
        for name, tensor in model.state_dict().items()
        if "embed_positions" not in name
    }
    expected = {name: tensor for name, tensor in expected.items() if not UNUSED.search(name)}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise UserError(
            f"{where} lacks {missing[0]} ({len(missing)} tensors in all): it is not the whole model, get it again"
        )
    if strange := sorted(tensors.keys() - expected.keys()):
        raise UserError(f"{where} holds {strange[0]}, for which a plain transformer has no place")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
            raise UserError(
                f"{where}: {name} has shape {shapes}; are checkpoint, dictionaries and spm.model of the same model?"
            )
    model.load_state_dict(
        {f"model.{name}": tensor for name, tensor in tensors.items()}, strict=False
    )
    model.tie_weights()
    return model
