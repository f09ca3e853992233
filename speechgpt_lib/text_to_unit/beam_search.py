"""Beam search for encoder–decoders, batched: what each text gets is what it would get alone.

Rules as in fairseq: a score is the mean log-probability of the tokens, the end included; a text is
done when as many hypotheses as beams have ended, and leaves the batch; at its length limit one has
to end.  Keys and values never move: usual searches copy the cache when beams are reordered, here
every beam looks at the keys of all, and a mask, reordered alone, says which are its ancestors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad, scaled_dot_product_attention

from speechgpt_lib.text_to_unit.model import UnitIds
from speechgpt_lib.units.features import fast_linear

ONEDNN_LINEAR = fast_linear(torch.float32)
GROWTH = 64  # steps by which the cache grows


class Layer:
    """One decoder block of a Pegasus or FSMT model, for one new token of every beam.

    kept: keys and values so far, (2, texts, heads, steps, beams, head width), allocated ahead.
    cross: the source's keys (texts, heads, head width, pieces) and values (…, pieces, head width).
    """

    def __init__(self, block: nn.Module, config, norm_first: bool, encoded: Tensor, beams: int):
        from transformers.activations import ACT2FN

        own, cross, self.heads = block.self_attn, block.encoder_attn, config.decoder_attention_heads
        self.norm_first = norm_first
        self.activation = ACT2FN[config.activation_function]
        self.qkv, self.out = _dense(own.q_proj, own.k_proj, own.v_proj), _dense(own.out_proj)
        self.cross_q, self.cross_out = _dense(cross.q_proj), _dense(cross.out_proj)
        self.up, self.down = _dense(block.fc1), _dense(block.fc2)
        self.own_norm, self.cross_norm = block.self_attn_layer_norm, block.encoder_attn_layer_norm
        self.last_norm = block.final_layer_norm
        keys, values = self._split(_dense(cross.k_proj, cross.v_proj)(encoded), 2)
        self.cross = [keys.transpose(-1, -2).contiguous(), values.contiguous()]
        self.kept = encoded.new_empty(2, len(encoded), self.heads, 0, beams, keys.shape[3])

    def __call__(self, x: Tensor, mask: Tensor, blocked: Tensor) -> Tensor:
        """x (texts, beams, width) → the same shape; its keys and values are remembered."""
        x = self._around(x, self.own_norm, self._own_attention, mask)
        x = self._around(x, self.cross_norm, self._cross_attention, blocked)
        return self._around(x, self.last_norm, lambda x: self.down(self.activation(self.up(x))))

    def _around(self, x: Tensor, norm: nn.LayerNorm, change: Callable, *mask: Tensor) -> Tensor:
        """A residual connection around `change`, normed before it (Pegasus) or behind (FSMT)."""
        return x + change(norm(x), *mask) if self.norm_first else norm(x + change(x, *mask))

    def _own_attention(self, x: Tensor, mask: Tensor) -> Tensor:
        new, steps = self._split(self.qkv(x), 3), mask.shape[3] // x.shape[1]
        self.kept[:, :, :, steps - 1] = new[1:]  # new: query, key, value of this step
        keys, values = self.kept[:, :, :, :steps].flatten(3, 4)
        seen = scaled_dot_product_attention(new[0], keys, values, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))

    def _cross_attention(self, x: Tensor, blocked: Tensor) -> Tensor:
        (q,), (keys, values) = self._split(self.cross_q(x), 1), self.cross
        scores = q @ keys * q.shape[-1] ** -0.5 + blocked
        seen = scores.softmax(-1) @ values  # small: fused attention takes longer
        return self.cross_out(seen.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(texts, n, parts · width) → (parts, texts, heads, n, head width)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class Decoder:
    """The decoder of a Pegasus or FSMT model, a token at a time for all beams of all texts.

    blocked: (texts, 1, 1, pieces), −inf where the source is padding.
    ancestors: (texts, beams, steps, beams), 0 where beam i descends from what stood in slot j at
        that step, else −inf; allocated ahead.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, sources: Tensor, real: Tensor, beams: int
    ):
        """sources: ids (texts, pieces), `real` where they are no padding."""
        kind = model.config.model_type
        if kind not in ("pegasus", "fsmt"):
            raise TypeError(f"beam search knows Pegasus and FSMT, found {type(model).__name__}")
        body, config = model.model.decoder, model.config
        encoded = model.get_encoder()(input_ids=sources, attention_mask=real.long())[0]
        norm_first = kind == "pegasus"
        self.embedding, positions = body.embed_tokens.weight, body.embed_positions.weight
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.positions = positions if norm_first else positions[config.pad_token_id + 1 :]
        self.final_norm = body.layer_norm if norm_first else nn.Identity()
        self.layers = [Layer(block, config, norm_first, encoded, beams) for block in body.layers]
        self.blocked = encoded.new_zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None]
        self.steps, self.ancestors = 0, encoded.new_empty(len(sources), beams, 0, beams)

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Newest tokens (texts, beams) → log-probabilities of the next, (texts, beams, ids).

        parents (texts, beams): from which slot each beam goes on.
        """
        index = parents[:, :, None, None].expand(-1, -1, *self.ancestors.shape[2:])
        self.ancestors = self.ancestors.gather(1, index)
        x = self.embedding[tokens] * self.scale + self.positions[self.steps]
        if self.steps == self.ancestors.shape[2]:
            self.ancestors = pad(self.ancestors, (0, 0, 0, GROWTH), value=-torch.inf)
            for layer in self.layers:
                layer.kept = pad(layer.kept, (0, 0, 0, 0, 0, GROWTH))
        self.ancestors[:, :, self.steps].diagonal(dim1=1, dim2=2).zero_()  # its own slot only
        self.steps += 1
        mask = self.ancestors[:, None, :, : self.steps].flatten(3)  # (texts, 1, beams, keys)
        for layer in self.layers:
            x = layer(x, mask, self.blocked)  # (texts, beams, width)
        return log_softmax(linear(self.final_norm(x), self.embedding).float(), -1)

    def keep(self, texts: Tensor) -> None:
        """Go on with some of the texts only, given their numbers (n,)."""
        self.blocked, self.ancestors = self.blocked[texts], self.ancestors[texts]
        for layer in self.layers:
            layer.kept, layer.cross = layer.kept[:, texts], [part[texts] for part in layer.cross]


@dataclass
class Search:
    """One text's beams: scores, slots they came from and tokens so far of each; what has ended."""

    limit: int
    scores: list[float]
    rows: list[list[int]]
    parents: list[int] = field(default_factory=list)
    finished: list[tuple[float, list[int]]] = field(default_factory=list)  # score, tokens

    def advance(self, candidates: Iterable[tuple[float, int, int]], end: int) -> None:
        """candidates: (score, slot, token), best first, twice as many as beams."""
        beams, going = len(self.scores), []
        for rank, (score, slot, token) in enumerate(candidates):
            row = self.rows[slot]
            if token != end:
                going.append((score, slot, [*row, token]))
            elif rank < beams and len(self.finished) < beams and score > -torch.inf:
                self.finished.append((score / (len(row) + 1), row))
        going += [(-torch.inf, 0, [*self.rows[0], end])] * beams  # where all is left is to end
        self.scores, self.parents, self.rows = map(list, zip(*going[:beams], strict=True))

    def is_done(self) -> bool:
        """Whether as many hypotheses as beams have ended, or the limit is passed."""
        return len(self.finished) >= len(self.rows) or len(self.rows[0]) > self.limit


@torch.inference_mode()
def beam_search(
    model: transformers.PreTrainedModel,
    vocabulary: UnitIds,
    sources: Tensor,
    limits: Sequence[int],
    beams: int,
) -> list[list[int]]:
    """The best hypothesis of every text: the ids of its units, at least one, at most `limits[k]`.

    sources: ids (texts, pieces), padded with `vocabulary.pad`.
    """
    decoder = Decoder(model, sources, sources != vocabulary.pad, beams)
    scores = [0.0] + [-torch.inf] * (beams - 1)  # all beams start as one
    active = searches = [Search(limit, scores, [[]] * beams) for limit in limits]
    tokens = sources.new_full((len(active), beams), vocabulary.begin)
    parents = torch.zeros_like(tokens)
    while active:
        best = _candidates(active, decoder.step(tokens, parents), vocabulary, beams)
        for search, candidates in zip(active, best, strict=True):
            search.advance(candidates, vocabulary.end)
        going = [k for k, search in enumerate(active) if not search.is_done()]
        if len(going) < len(active):
            decoder.keep(sources.new_tensor(going))
            active = [active[k] for k in going]
        parents = sources.new_tensor([search.parents for search in active])
        tokens = sources.new_tensor([[row[-1] for row in search.rows] for search in active])
    return [max(search.finished, key=lambda ended: ended[0])[1] for search in searches]


def _candidates(active: list[Search], logs: Tensor, vocabulary: UnitIds, beams: int) -> list:
    """Log-probabilities (texts, beams, vocabulary) → 2 · beams (score, slot, token) a text."""
    first, end, count = vocabulary.first_unit, vocabulary.end, vocabulary.unit_count
    units, ends = logs[..., first : first + count], logs[..., end : end + 1]
    choices = torch.cat([units, ends], dim=-1)  # (texts, beams, count + 1)
    written = len(active[0].rows[0])
    if written == 0:
        choices[..., -1] = -torch.inf  # at least one unit
    if full := [k for k, search in enumerate(active) if written >= search.limit]:
        choices[full, :, :-1] = -torch.inf
    scores = choices + choices.new_tensor([search.scores for search in active])[:, :, None]
    values, indices = scores.flatten(1).topk(min(2 * beams, scores[0].numel()))
    slots, choice = indices // (count + 1), indices % (count + 1)
    tokens = torch.where(choice == count, end, choice + first)
    rows = zip(values.tolist(), slots.tolist(), tokens.tolist(), strict=True)
    return [zip(*row, strict=True) for row in rows]


def _dense(*maps: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Linear layers with the same input as one."""
    weight, bias = torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])
    return partial(linear, weight=weight, bias=bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in) → (…, out)."""
    if x.device.type == "cpu" and ONEDNN_LINEAR is not None and x.numel() > 2048:
        # Takes half as long on some machines, and costs more to call.
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)
