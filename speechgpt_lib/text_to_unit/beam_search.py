"""Beam search for encoder–decoders, batched: what each text gets is what it would get alone.

Rules as in fairseq: a hypothesis' score is the mean log-probability of its tokens, the end included; a text is done when it has as many
finished hypotheses as beams; at its length limit a hypothesis has to end.  Two things make it fast:

- *Keys and values never move.*  When beams are reordered, usual searches copy the whole cache.  Here every beam of a text looks at the keys
  of all of them, and a mask says which are its own ancestors; only the mask is reordered.
- Texts that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import layer_norm, log_softmax, scaled_dot_product_attention
from transformers import (
    FSMTForConditionalGeneration,
    PegasusForConditionalGeneration,
    PreTrainedModel,
)
from transformers.activations import ACT2FN

from speechgpt_lib.units.features import ONEDNN_LINEAR

GROWTH = 64  # steps by which the cache grows


@dataclass(frozen=True)
class Layer:
    """The weights of one decoder block: (weight, bias) of each linear map, and its three norms."""

    qkv: tuple[torch.Tensor, torch.Tensor]
    out: tuple[torch.Tensor, torch.Tensor]
    cross_q: tuple[torch.Tensor, torch.Tensor]
    cross_kv: tuple[torch.Tensor, torch.Tensor]
    cross_out: tuple[torch.Tensor, torch.Tensor]
    up: tuple[torch.Tensor, torch.Tensor]
    down: tuple[torch.Tensor, torch.Tensor]
    norms: tuple[nn.LayerNorm, nn.LayerNorm, nn.LayerNorm]


class Decoder:
    """The decoder of a Pegasus or FSMT model, a token at a time for all beams."""

    def __init__(self, model: PreTrainedModel):
        if not isinstance(model, PegasusForConditionalGeneration | FSMTForConditionalGeneration):
            raise TypeError(f"beam search knows Pegasus and FSMT, found {type(model).__name__}")
        body, config = model.model.decoder, model.config
        self.norm_first = isinstance(
            model, PegasusForConditionalGeneration
        )  # FSMT norms after each block
        self.heads = config.decoder_attention_heads
        self.activation = ACT2FN[config.activation_function]
        self.embedding, self.scale = (
            body.embed_tokens.weight,
            config.d_model**0.5 if config.scale_embedding else 1.0,
        )
        positions = body.embed_positions.weight
        self.positions = positions if self.norm_first else positions[config.pad_token_id + 1 :]
        self.final_norm = body.layer_norm if self.norm_first else None
        self.layers = [self._layer(block) for block in body.layers]

    def _layer(self, block: nn.Module) -> Layer:
        own, cross = block.self_attn, block.encoder_attn
        return Layer(
            qkv=_joined(own.q_proj, own.k_proj, own.v_proj),
            out=_joined(own.out_proj),
            cross_q=_joined(cross.q_proj),
            cross_kv=_joined(cross.k_proj, cross.v_proj),
            cross_out=_joined(cross.out_proj),
            up=_joined(block.fc1),
            down=_joined(block.fc2),
            norms=(
                block.self_attn_layer_norm,
                block.encoder_attn_layer_norm,
                block.final_layer_norm,
            ),
        )

    def start(self, encoded: torch.Tensor, source_mask: torch.Tensor, beams: int) -> State:
        """encoded (texts, pieces, width), source_mask (texts, pieces) True where a piece is real."""
        texts, pieces, width = encoded.shape
        crossed = []
        for layer in self.layers:
            kv = (
                linear(encoded, *layer.cross_kv)
                .view(texts, pieces, 2, self.heads, -1)
                .permute(2, 0, 3, 1, 4)
            )
            crossed.append((kv[0].transpose(-1, -2).contiguous(), kv[1].contiguous()))
        shape = (texts, self.heads, 0, beams, width // self.heads)
        caches = [(encoded.new_empty(shape), encoded.new_empty(shape)) for _ in self.layers]
        ancestors = encoded.new_full((texts, beams, 0, beams), -torch.inf)
        blocked = encoded.new_zeros(source_mask.shape).masked_fill(~source_mask, -torch.inf)
        return State(beams, crossed, blocked[:, None, None, :], caches, ancestors)

    def step(self, state: State, tokens: torch.Tensor) -> torch.Tensor:
        """The next token of every beam (texts, beams) → log-probabilities of the one after it (texts, beams, vocabulary)."""
        texts, beams = tokens.shape
        state.grow()
        t = state.steps
        state.ancestors[:, :, t] = _own_slot(beams, tokens.device)
        state.steps += 1
        x = self.embedding[tokens] * self.scale + self.positions[t]
        mask = state.ancestors[:, None, :, : t + 1].flatten(3)
        for layer, (keys, values), (cross_keys, cross_values) in zip(
            self.layers, state.caches, state.crossed, strict=True
        ):
            h = self._before(x, layer.norms[0])
            q, k, v = (
                linear(h, *layer.qkv).view(texts, beams, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            )
            keys[:, :, t], values[:, :, t] = k, v
            seen = scaled_dot_product_attention(
                q,
                keys[:, :, : t + 1].flatten(2, 3),
                values[:, :, : t + 1].flatten(2, 3),
                attn_mask=mask,
            )
            x = self._after(x, linear(seen.transpose(1, 2).flatten(2), *layer.out), layer.norms[0])
            h = self._before(x, layer.norms[1])
            q = linear(h, *layer.cross_q).view(texts, beams, self.heads, -1).transpose(1, 2)
            seen = (q @ cross_keys * q.shape[-1] ** -0.5 + state.blocked).softmax(
                -1
            ) @ cross_values  # small: fused attention takes longer
            x = self._after(
                x, linear(seen.transpose(1, 2).flatten(2), *layer.cross_out), layer.norms[1]
            )
            h = self._before(x, layer.norms[2])
            x = self._after(
                x, linear(self.activation(linear(h, *layer.up)), *layer.down), layer.norms[2]
            )
        x = _norm(x, self.final_norm) if self.final_norm is not None else x
        return log_softmax(linear(x, self.embedding).float(), -1)

    def _before(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        return _norm(x, norm) if self.norm_first else x

    def _after(self, x: torch.Tensor, change: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        return x + change if self.norm_first else _norm(x + change, norm)


@dataclass
class State:
    """What a search remembers between steps.

    crossed: keys (texts, heads, head width, pieces) and values (texts, heads, pieces, head width) of the encoder.
    caches: keys and values so far, (texts, heads, steps, beams, head width) each, allocated ahead.
    ancestors: (texts, beams, steps, beams), 0 where beam i descends from what stood in slot j at that step, else −inf.
    """

    beams: int
    crossed: list[tuple[torch.Tensor, torch.Tensor]]
    blocked: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    ancestors: torch.Tensor
    steps: int = 0

    def grow(self) -> None:
        if self.steps < self.ancestors.shape[2]:
            return
        self.caches = [tuple(_longer(c, 0.0) for c in pair) for pair in self.caches]
        self.ancestors = _longer(self.ancestors, -torch.inf)

    def reorder(self, parents: torch.Tensor) -> None:
        """parents (texts, beams): from which slot each beam goes on."""
        index = parents[:, :, None, None].expand(-1, -1, *self.ancestors.shape[2:])
        self.ancestors = self.ancestors.gather(1, index)

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with some of the texts only."""
        self.crossed = [(k[texts], v[texts]) for k, v in self.crossed]
        self.caches = [(k[texts], v[texts]) for k, v in self.caches]
        self.blocked, self.ancestors = self.blocked[texts], self.ancestors[texts]


@dataclass
class Search:
    """One text's beams: scores, the way they came (slot before, token), and finished hypotheses (score, tokens)."""

    number: int
    limit: int
    scores: list[float]
    parents: list[list[int]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def advance(self, candidates: Iterable[tuple[float, int, int]], beams: int, end: int) -> None:
        """candidates: (score, slot, token), best first, twice as many as beams."""
        parents, tokens, scores = [], [], []
        for rank, (score, slot, token) in enumerate(candidates):
            if token == end:
                if rank < beams and len(self.finished) < beams and score > -torch.inf:
                    self.finished.append((score / (len(self.tokens) + 1), self.trace(slot)))
            elif len(tokens) < beams:
                parents.append(slot)
                tokens.append(token)
                scores.append(score)
        lacking = beams - len(tokens)  # where all that is left is to end
        self.parents.append(parents + [0] * lacking)
        self.tokens.append(tokens + [end] * lacking)
        self.scores = scores + [-torch.inf] * lacking

    def trace(self, slot: int) -> list[int]:
        """The tokens that lead to a slot."""
        found = []
        for parents, tokens in zip(reversed(self.parents), reversed(self.tokens), strict=True):
            found.append(tokens[slot])
            slot = parents[slot]
        return found[::-1]

    def is_done(self, beams: int) -> bool:
        return len(self.finished) >= beams or len(self.tokens) > self.limit

    def best(self) -> list[int]:
        return max(self.finished, key=lambda hypothesis: hypothesis[0])[1]


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    sources: torch.Tensor,
    source_mask: torch.Tensor,
    limits: Sequence[int],
    beams: int,
    allowed: slice,
    begin: int,
    end: int,
) -> list[list[int]]:
    """The best hypothesis of every text: its tokens without begin and end, at least one and at most `limits[k]`.

    Args:
        sources, source_mask: (texts, pieces) ids, and True where they are real.
        allowed: the ids that may be written.
    """
    decoder = Decoder(model)
    encoded = model.get_encoder()(
        input_ids=sources, attention_mask=source_mask.long(), return_dict=True
    ).last_hidden_state
    state = decoder.start(encoded, source_mask, beams)
    active = [
        Search(k, limit, [0.0] + [-torch.inf] * (beams - 1)) for k, limit in enumerate(limits)
    ]
    found: list[list[int]] = [[] for _ in limits]
    tokens = sources.new_full((len(active), beams), begin)
    count = allowed.stop - allowed.start
    while True:
        written = state.steps
        logits = decoder.step(state, tokens)
        choices = torch.cat(
            [logits[..., allowed], logits[..., end : end + 1]], dim=-1
        )  # the end comes last
        if written == 0:
            choices[..., -1] = -torch.inf
        full = [k for k, search in enumerate(active) if written >= search.limit]
        if full:
            choices[full, :, :-1] = -torch.inf
        scores = (
            choices
            + torch.tensor([search.scores for search in active], device=choices.device)[:, :, None]
        )
        values, indices = scores.flatten(1).topk(min(2 * beams, scores[0].numel()))
        slots, choice = indices // (count + 1), indices % (count + 1)
        written_ids = torch.where(choice == count, end, choice + allowed.start)
        for search, *candidates in zip(
            active, values.tolist(), slots.tolist(), written_ids.tolist(), strict=True
        ):
            search.advance(zip(*candidates, strict=True), beams, end)
        going = [k for k, search in enumerate(active) if not search.is_done(beams)]
        if len(going) < len(active):
            for search in active:
                if search.is_done(beams):
                    found[search.number] = search.best()
            active = [active[k] for k in going]
            if not active:
                return found
            state.keep(torch.tensor(going, device=sources.device))
        state.reorder(
            torch.tensor([search.parents[-1] for search in active], device=sources.device)
        )
        tokens = torch.tensor([search.tokens[-1] for search in active], device=sources.device)


def _own_slot(beams: int, device: torch.device) -> torch.Tensor:
    """(beams, beams): a beam's newest key is the one in its own slot."""
    return torch.full((beams, beams), -torch.inf, device=device).fill_diagonal_(0.0)


def _longer(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """`tensor` with `GROWTH` more steps (dimension 2)."""
    shape = list(tensor.shape)
    shape[2] = GROWTH
    return torch.cat([tensor, tensor.new_full(shape, value)], dim=2)


def _joined(*maps: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])


def _norm(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (…, in) → (…, out).  On a CPU large ones go through oneDNN, which takes half as long on some machines and costs more to call."""
    if x.device.type == "cpu" and ONEDNN_LINEAR is not None and x.numel() > 2048:
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)
