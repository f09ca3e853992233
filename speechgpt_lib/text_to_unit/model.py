"""Text → units: the joint vocabulary and the encoder–decoder over it (Vaswani et al. 2017).

0 padding   1 beginning   2 end   3 … K+2 units <0> … <K−1>   K+3 … pieces of the text tokenizer
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.units.sequence import check_range

PAD, BEGIN, END, FIRST_UNIT = 0, 1, 2, 3
POSITIONS = 1024  # most pieces a text and most units an answer may have
INITIAL_GAIN = 0.7  # standard deviation of the random weights × √width
ALIGNED_GAIN = 1.3  # how sharply the cross-attention starts


def train_tokenizer(texts: Iterable[str], pieces: int) -> Tokenizer:
    """BPE of at most `pieces` pieces over `texts`; with no more than their characters it spells."""
    tokenizer = Tokenizer(models.BPE())  # it writes ▁ before each word instead of a space
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=pieces, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class UnitIds:
    """A vocabulary: markers `pad`, `begin`, `end`; unit u < `unit_count` is `first_unit` + u."""

    def units_in(self, ids: Sequence[int]) -> np.ndarray:
        """The units (n,) int64 among ids, everything else left out."""
        units = np.asarray(ids, dtype=np.int64) - self.first_unit
        return units[(units >= 0) & (units < self.unit_count)]


@dataclass(frozen=True)
class PairVocabulary(UnitIds):
    """Both sides of the pairs in one vocabulary: text through a tokenizer, units by arithmetic."""

    tokenizer: Tokenizer
    unit_count: int
    pad, begin, end, first_unit = PAD, BEGIN, END, FIRST_UNIT

    def encode_text(self, text: str) -> list[int]:
        """Text → ids, the end marker last; any white space counts as one blank.

        Raises UserError for an empty text and for characters that no training text had.
        """
        words = text.split()
        if not words:
            raise UserError(f"there is no text to speak: found {text!r}, expected at least a word")
        if unknown := sorted(set("".join(words)) - self.tokenizer.get_vocab().keys()):
            found = f"characters never seen in training: {' '.join(unknown[:8])}"
            raise UserError(f"text {text[:40]!r} has {found}; write it as the training texts are")
        offset = self.first_unit + self.unit_count
        return [*(offset + piece for piece in self.tokenizer.encode(" ".join(words)).ids), END]

    def encode_units(self, units: np.ndarray) -> list[int]:
        """Merged units (n,) → ids, the end marker last."""
        check_range(units, self.unit_count)
        return [*(np.asarray(units, dtype=np.int64) + self.first_unit).tolist(), END]


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Rows of ids → (rows, longest) int64, padded on the right."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=pad)


def build_model(
    settings: TextToUnitSettings, vocabulary: PairVocabulary, units_per_piece: float, seed: int
) -> transformers.PegasusForConditionalGeneration:
    """An encoder–decoder with random weights and an aligned start (`align_start`).

    Pegasus is transformers' plain Transformer with layer norms before the blocks and sinusoidal
    positions, which trains at a high learning rate; one embedding table serves all sides.
    """
    shape = {"layers": settings.layers, "attention_heads": settings.heads}
    shape |= {"ffn_dim": settings.feed_forward}
    both = {f"{side}_{key}": shape[key] for side in ("encoder", "decoder") for key in shape}
    markers = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    config = transformers.PegasusConfig(
        vocab_size=FIRST_UNIT + vocabulary.unit_count + vocabulary.tokenizer.get_vocab_size(),
        d_model=settings.hidden_size,
        max_position_embeddings=POSITIONS,
        dropout=settings.dropout,
        # The usual 0.02 is for wide models and slows a narrow one down.
        init_std=INITIAL_GAIN / math.sqrt(settings.hidden_size),
        scale_embedding=True,
        decoder_start_token_id=BEGIN,
        forced_eos_token_id=None,
        attn_implementation="sdpa",
        **both,
        **markers,
    )
    torch.manual_seed(seed)
    model = transformers.PegasusForConditionalGeneration(config)
    align_start(model, units_per_piece)
    return model


@torch.no_grad()
def align_start(
    model: transformers.PegasusForConditionalGeneration, units_per_piece: float
) -> None:
    """Let the decoder start out reading the text from left to right at an even pace.

    After Ping et al. 2018 (arXiv 1710.07654, 3.5): text position p gets the sinusoids of unit
    position p × `units_per_piece`, and queries and keys of the cross-attention start equal.
    **Differs from the paper**, whose generator finds the alignment from 960 hours.
    """
    table = model.model.encoder.embed_positions.weight
    positions, width = table.shape
    rates = 10000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * units_per_piece * rates  # (positions, width / 2)
    table.copy_(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))
    for block in model.model.decoder.layers:
        attention = block.encoder_attn
        attention.q_proj.weight.mul_(ALIGNED_GAIN)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


class PairLoss(nn.Module):
    """The loss of predicting each unit from the text and the units before it."""

    def __init__(self, model: transformers.PegasusForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, sources: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """sources (rows, pieces), targets (rows, units) ending in `END`, both padded on the right.

        Returns (sum of losses, number of targets, number of targets that were the likeliest).
        """
        begin = torch.full_like(targets[:, :1], BEGIN)
        hidden = self.model.model(
            input_ids=sources,
            attention_mask=(sources != PAD).long(),
            decoder_input_ids=torch.cat([begin, targets[:, :-1]], dim=1),  # none looks ahead
            use_cache=False,
        ).last_hidden_state  # (rows, units, width)
        real = targets != PAD  # the loss mask
        logits = self.model.lm_head(hidden[real]).float()  # (real units, vocabulary)
        loss = nn.functional.cross_entropy(logits, targets[real], reduction="sum")
        return loss, real.sum(), (logits.argmax(-1) == targets[real]).sum()
