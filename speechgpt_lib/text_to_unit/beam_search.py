"""Beam search for encoder–decoders, batched: what each text gets is what it would get alone.

Rules as in fairseq: a hypothesis' score is the mean log-probability of its tokens, the end
included; a text is done when it has as many finished hypotheses as beams; at its length limit a
hypothesis has to end.  Two things make it fast:

- *Keys and values never move.*  When beams are reordered, usual searches copy the whole cache.
  Here every beam of a text looks at the keys of all of them, and a mask says which are its own
  ancestors; only the mask is reordered.
- Texts that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad, scaled_dot_product_attention
from transformers import (
    FSMTForConditionalGeneration,
    PegasusForConditionalGeneration,
    PreTrainedModel,
)
from transformers.activations import ACT2FN

from speechgpt_lib.text_to_unit.model import UnitIds
from speechgpt_lib.units.features import fast_linear

ONEDNN_LINEAR = fast_linear(torch.float32)
GROWTH = 64  # steps by which the cache grows


class Layer:
    """One decoder block of a Pegasus or FSMT model, for one new token of every beam."""

    def __init__(self, block: nn.Module, heads: int, norm_first: bool, activation: nn.Module):
        own, cross = block.self_attn, block.encoder_attn
        self.qkv, self.out = _joined(own.q_proj, own.k_proj, own.v_proj), _joined(own.out_proj)
        self.cross_q, self.cross_kv = _joined(cross.q_proj), _joined(cross.k_proj, cross.v_proj)
        self.cross_out = _joined(cross.out_proj)
        self.up, self.down = _joined(block.fc1), _joined(block.fc2)
        self.own_norm, self.cross_norm = block.self_attn_layer_norm, block.encoder_attn_layer_norm
        self.last_norm = block.final_layer_norm
        self.heads, self.norm_first, self.activation = heads, norm_first, activation

    def remember(self, encoded: Tensor, beams: int) -> Memory:
        """Keys and values of the encoder's output (texts, pieces, width), none of our own yet."""
        keys, values = self._split(linear(encoded, *self.cross_kv), 2)
        shape = (len(encoded), self.heads, 0, beams, encoded.shape[2] // self.heads)
        own = encoded.new_empty(shape), encoded.new_empty(shape)
        return Memory(*own, keys.transpose(-1, -2).contiguous(), values.contiguous())

    def __call__(self, x: Tensor, state: State, memory: Memory) -> Tensor:
        """x (texts, beams, width) → the same shape; keys and values are added to `memory`."""
        x = self._around(x, self.own_norm, self._own_attention, state, memory)
        x = self._around(x, self.cross_norm, self._cross_attention, state, memory)
        return self._around(x, self.last_norm, self._feed_forward)

    def _around(self, x: Tensor, norm: nn.LayerNorm, change, *arguments) -> Tensor:
        """The residual connection around `change`, normed before it (Pegasus) or behind (FSMT)."""
        if self.norm_first:
            return x + change(norm(x), *arguments)
        return norm(x + change(x, *arguments))

    def _own_attention(self, x: Tensor, state: State, memory: Memory) -> Tensor:
        q, k, v = self._split(linear(x, *self.qkv), 3)  # (texts, heads, beams, head width) each
        memory.keys[:, :, state.steps - 1], memory.values[:, :, state.steps - 1] = k, v
        keys, values = memory.keys[:, :, : state.steps], memory.values[:, :, : state.steps]
        seen = scaled_dot_product_attention(
            q, keys.flatten(2, 3), values.flatten(2, 3), attn_mask=state.mask
        )
        return linear(seen.transpose(1, 2).flatten(2), *self.out)

    def _cross_attention(self, x: Tensor, state: State, memory: Memory) -> Tensor:
        (q,) = self._split(linear(x, *self.cross_q), 1)
        scores = q @ memory.cross_keys * q.shape[-1] ** -0.5 + state.blocked
        seen = scores.softmax(-1) @ memory.cross_values  # small: fused attention takes longer
        return linear(seen.transpose(1, 2).flatten(2), *self.cross_out)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return linear(self.activation(linear(x, *self.up)), *self.down)

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(texts, n, parts · width) → (parts, texts, heads, n, head width)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class Memory(NamedTuple):
    """What one layer remembers between steps.

    keys, values: so far, (texts, heads, steps, beams, head width) each, allocated ahead.
    cross_keys (texts, heads, head width, pieces), cross_values (texts, heads, pieces, head width).
    """

    keys: Tensor
    values: Tensor
    cross_keys: Tensor
    cross_values: Tensor


@dataclass
class State:
    """What a search remembers between steps, beside each layer's memory.

    blocked: (texts, 1, 1, pieces), −inf where the source is padding.
    ancestors: (texts, beams, steps, beams), 0 where beam i descends from what stood in slot j at
        that step, else −inf; allocated ahead.
    mask: (texts, 1, beams, steps · beams), the same for the steps so far: the keys a beam sees.
    """

    blocked: Tensor
    ancestors: Tensor
    memories: list[Memory]
    mask: Tensor | None = None
    steps: int = 0

    def advance(self) -> None:
        """Make room for one more step, at which every beam sees its own slot only."""
        if self.steps == self.ancestors.shape[2]:
            self.ancestors = _longer(self.ancestors, -torch.inf)
            self.memories = [
                memory._replace(keys=_longer(memory.keys, 0.0), values=_longer(memory.values, 0.0))
                for memory in self.memories
            ]
        self.ancestors[:, :, self.steps].diagonal(dim1=1, dim2=2).zero_()
        self.steps += 1
        self.mask = self.ancestors[:, None, :, : self.steps].flatten(3)

    def reorder(self, parents: Tensor) -> None:
        """parents (texts, beams): from which slot each beam goes on."""
        index = parents[:, :, None, None].expand(-1, -1, *self.ancestors.shape[2:])
        self.ancestors = self.ancestors.gather(1, index)

    def keep(self, texts: Tensor) -> None:
        """Go on with some of the texts only."""
        self.blocked, self.ancestors = self.blocked[texts], self.ancestors[texts]
        self.memories = [Memory(*(part[texts] for part in memory)) for memory in self.memories]


class Decoder:
    """The decoder of a Pegasus or FSMT model, a token at a time for all beams."""

    def __init__(self, model: PreTrainedModel):
        if not isinstance(model, PegasusForConditionalGeneration | FSMTForConditionalGeneration):
            raise TypeError(f"beam search knows Pegasus and FSMT, found {type(model).__name__}")
        body, config = model.model.decoder, model.config
        norm_first = isinstance(model, PegasusForConditionalGeneration)
        self.embedding, positions = body.embed_tokens.weight, body.embed_positions.weight
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.positions = positions if norm_first else positions[config.pad_token_id + 1 :]
        self.final_norm = body.layer_norm if norm_first else nn.Identity()
        shape = config.decoder_attention_heads, norm_first, ACT2FN[config.activation_function]
        self.layers = [Layer(block, *shape) for block in body.layers]

    def start(self, encoded: Tensor, source_mask: Tensor, beams: int) -> State:
        """encoded (texts, pieces, width), source_mask (texts, pieces) true at real pieces."""
        blocked = encoded.new_zeros(source_mask.shape).masked_fill(~source_mask, -torch.inf)
        ancestors = encoded.new_full((len(encoded), beams, 0, beams), -torch.inf)
        memories = [layer.remember(encoded, beams) for layer in self.layers]
        return State(blocked[:, None, None, :], ancestors, memories)

    def step(self, state: State, tokens: Tensor) -> Tensor:
        """The newest token of every beam (texts, beams) → log-probabilities of the next one.

        Returns (texts, beams, vocabulary).
        """
        x = self.embedding[tokens] * self.scale + self.positions[state.steps]
        state.advance()
        for layer, memory in zip(self.layers, state.memories, strict=True):
            x = layer(x, state, memory)  # (texts, beams, width)
        return log_softmax(linear(self.final_norm(x), self.embedding).float(), -1)


@dataclass
class Search:
    """One text's beams: scores, the way they came (slot before, token), finished hypotheses."""

    number: int
    limit: int
    scores: list[float]
    parents: list[list[int]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    finished: list[tuple[float, list[int]]] = field(default_factory=list)  # score, tokens

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
        """Whether as many hypotheses as beams have ended, or the limit is passed."""
        return len(self.finished) >= beams or len(self.tokens) > self.limit

    def best(self) -> list[int]:
        """The tokens of the finished hypothesis with the best score."""
        return max(self.finished, key=lambda hypothesis: hypothesis[0])[1]


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel, vocabulary: UnitIds, sources: Tensor, limits: Sequence[int], beams: int
) -> list[list[int]]:
    """The best hypothesis of every text: the ids of its units, at least one, at most `limits[k]`.

    sources: ids (texts, pieces), padded with `vocabulary.pad`.
    """
    decoder, mask = Decoder(model), sources != vocabulary.pad
    encoder = model.get_encoder()
    encoded = encoder(input_ids=sources, attention_mask=mask.long(), return_dict=True)
    state = decoder.start(encoded.last_hidden_state, mask, beams)
    scores = [0.0] + [-torch.inf] * (beams - 1)  # all beams start as one
    active = [Search(k, limit, scores) for k, limit in enumerate(limits)]
    found: dict[int, list[int]] = {}
    tokens = sources.new_full((len(active), beams), vocabulary.begin)
    while active:
        best = _candidates(active, decoder.step(state, tokens), vocabulary, beams)
        for search, candidates in zip(active, best, strict=True):
            search.advance(candidates, beams, vocabulary.end)
        found |= {search.number: search.best() for search in active if search.is_done(beams)}
        going = [k for k, search in enumerate(active) if not search.is_done(beams)]
        if len(going) < len(active):
            state.keep(torch.tensor(going, dtype=torch.long, device=sources.device))
            active = [active[k] for k in going]
        if active:
            state.reorder(sources.new_tensor([search.parents[-1] for search in active]))
            tokens = sources.new_tensor([search.tokens[-1] for search in active])
    return [found[k] for k in range(len(limits))]


def _candidates(active: list[Search], logs: Tensor, vocabulary: UnitIds, beams: int) -> list:
    """Log-probabilities (texts, beams, vocabulary) → 2 · beams (score, slot, token) a text."""
    first, end, count = vocabulary.first_unit, vocabulary.end, vocabulary.unit_count
    units, ends = logs[..., first : first + count], logs[..., end : end + 1]
    choices = torch.cat([units, ends], dim=-1)  # (texts, beams, count + 1)
    written = len(active[0].tokens)
    if written == 0:
        choices[..., -1] = -torch.inf  # at least one unit
    if full := [k for k, search in enumerate(active) if written >= search.limit]:
        choices[full, :, :-1] = -torch.inf
    scores = choices + choices.new_tensor([search.scores for search in active])[:, :, None]
    values, indices = scores.flatten(1).topk(min(2 * beams, scores[0].numel()))
    slots, choice = indices // (count + 1), indices % (count + 1)
    tokens = torch.where(choice == count, end, choice + first)
    rows = zip(values.tolist(), slots.tolist(), tokens.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def _longer(tensor: Tensor, value: float) -> Tensor:
    """`tensor` with `GROWTH` more steps (dimension 2)."""
    return pad(tensor, (0, 0) * (tensor.ndim - 3) + (0, GROWTH), value=value)


def _joined(*maps: nn.Linear) -> tuple[Tensor, Tensor]:
    return torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in) → (…, out)."""
    if x.device.type == "cpu" and ONEDNN_LINEAR is not None and x.numel() > 2048:
        # Takes half as long on some machines, and costs more to call.
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)
