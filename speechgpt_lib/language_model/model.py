"""The language model: a LLaMA (transformers), small and made here in `lab`, or a published one.

**Differs from the paper**: LLaMA-13B learned from a trillion tokens to look up what was said
earlier in a text.  A model of two million parameters that sees two million tokens does not: asked
"the dog is red and the cat is blue what color is the dog" it flips a coin.  So its layers *start*
as an induction circuit (Olsson et al. 2022, arXiv 2209.11895), trainable from there on.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechgpt_lib.errors import UserError, reads
from speechgpt_lib.language_model import planning
from speechgpt_lib.language_model.families import read_config
from speechgpt_lib.language_model.planning import NAMES, Shape
from speechgpt_lib.language_model.vocabulary import BEGIN, END, PAD, UnitVocabulary, read_tokenizer
from speechgpt_lib.language_model.weights import (
    EMBEDDINGS,
    HEAD,
    PART_BYTES,
    Place,
    copy_weights,
    empty_model,
    load_weights,
    read_weights,
)
from speechgpt_lib.recipes.schema import LanguageModelSettings
from speechgpt_lib.training.checkpoints import save_module
from speechgpt_lib.training.parts import read_rows, write_joined
from speechgpt_lib.training.sharding import is_sharded, shard

LARGEST_MULTIPLE = 256  # to which a number of embeddings may be rounded up
# The induction circuit: tokens of context that it compares; size of its positional biases; gain of
# its queries and keys; gain at which layer 0 writes.
LOOK_BACK, SHARPNESS, MATCH, SHARE = 4, 7.0, 1.5, 0.03


def build_model(
    settings: LanguageModelSettings, vocabulary: int, seed: int
) -> transformers.LlamaForCausalLM:
    """A LLaMA with random weights and, if the settings say so, an induction circuit."""
    sizes = settings.model_dump(include=set(NAMES)) | {"vocabulary": vocabulary, "tied": True}
    config = Shape(**sizes).config(
        max_position_embeddings=1024,
        attention_bias=settings.induction_start,  # a bias lets a head attend by position alone
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        attn_implementation="sdpa",
        **{"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END},
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    if settings.induction_start:
        seed_induction(model)
    return model


@torch.no_grad()
def seed_induction(model: transformers.LlamaForCausalLM) -> None:
    """Let the model start with a look-up of "what followed the last time I read these words".

    Layer 0, heads 0 to 4: head h attends to the token h places back, through the biases alone (with
    rotary positions, constant queries and keys make a score that depends on the distance only).
    The tokens 1 to 4 back are written into subspace A ("what stands before me"), the tokens 0 to 3
    back into subspace B ("what I have just read").  Layers above, heads 0 and 1: queries read B,
    keys read A.  So a position finds where the same words were read before, and what came next;
    passing that on is left to training.  One such layer is enough for text; in speech a word is
    known only once a layer or two have made it out, hence the same start in every layer.
    """
    hidden = model.config.hidden_size
    width = hidden // model.config.num_attention_heads
    frequencies = model.model.rotary_emb.inv_freq
    # Rotary pairs that tell neighbours apart are used for position, those that don't for content.
    fast = (frequencies >= 0.09).float()
    slow = torch.cat([1 - fast, 1 - fast])[:, None]
    subspaces = nn.init.orthogonal_(torch.empty(2 * width, hidden))
    before, just_read = subspaces[:width], subspaces[width:]
    reader = nn.init.orthogonal_(torch.empty(width, hidden))

    first, *above = [block.self_attn for block in model.model.layers]
    for back in range(LOOK_BACK + 1):
        head = slice(back * width, (back + 1) * width)
        angles = frequencies * back
        turned = torch.cat([torch.cos(angles) * fast, -torch.sin(angles) * fast])
        first.q_proj.bias[head] = SHARPNESS * turned
        first.k_proj.bias[head] = SHARPNESS * torch.cat([fast, torch.zeros_like(fast)])
        first.v_proj.weight[head] = reader
        written = (back > 0) * before.T + (back < LOOK_BACK) * just_read.T
        first.o_proj.weight[:, head] = SHARE * written
    for number in range(2):
        head = slice(number * width, (number + 1) * width)
        for attention in above:
            attention.q_proj.weight[head] += MATCH * just_read * slow
            attention.k_proj.weight[head] += MATCH * before * slow


class CausalLoss(nn.Module):
    """The next-token loss over padded rows, computed only where the loss mask is not 0."""

    def __init__(self, model: transformers.PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, weights: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and weights (batch, tokens), padded on the right → (sum of losses, sum of weights).

        Right padding needs no attention mask: no real token looks ahead.  Packed rows are kept
        apart by `positions` (batch, tokens), which start anew in each, and the missing cache.
        """
        states = self.model.model(input_ids=ids, position_ids=positions, use_cache=False)
        hidden = states.last_hidden_state[:, :-1].flatten(0, 1)  # (batch · (tokens − 1), hidden)
        weights, targets = weights[:, 1:].flatten(), ids[:, 1:].flatten()
        counted = torch.nonzero(weights > 0)[:, 0]
        # Filled up with a position of weight 0: a CPU prepares kernels for every new shape.
        fill = (-len(counted)) % 256
        chosen = torch.cat([counted, counted.new_zeros(fill)])
        kept = torch.cat([weights[counted], weights.new_zeros(fill)])
        parts = (hidden[chosen], targets[chosen], kept)
        # (chosen, vocabulary) numbers can be more than all else that a step keeps: of a large
        # vocabulary some rows at a time, whose logits the backward pass computes again.
        size = planning.positions_at_once(self.model.config.vocab_size)
        if len(chosen) <= size:
            return self._sum_of_losses(*parts), weights.sum()
        again = functools.partial(checkpoint, self._sum_of_losses, use_reentrant=False)
        sums = [again(*part) for part in zip(*(p.split(size) for p in parts), strict=True)]
        return torch.stack(sums).sum(), weights.sum()

    def _sum_of_losses(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """States (chosen, hidden), what should follow them, and how much each counts → a number."""
        logits = self.model.lm_head(hidden).float()  # (chosen, vocabulary)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (losses * weights).sum()


@torch.no_grad()
def expand_model(
    model: transformers.PreTrainedModel,
    before: UnitVocabulary,
    after: UnitVocabulary,
    seed: int,
    centroids: np.ndarray | None = None,
    multiple: int = 1,
) -> transformers.PreTrainedModel:
    """Add embeddings for the tokens of `after`, the vocabulary with units, to those of `before`.

    New ones start at the mean of the old ones plus noise of their spread, so that no two are equal;
    given `centroids` (units, features), units start where a random projection puts these, at the
    same spread, so units that sound alike start alike.  The number of embeddings is rounded up to a
    `multiple`, for hardware that likes round shapes.  Logits of old tokens do not change, input and
    output stay tied if they were, and a model that is expanded already stays as it is.
    """
    found, size = len(model.get_input_embeddings().weight), -(-after.size // multiple) * multiple
    if found == size:
        return model
    if found != before.size:
        wrong = f"the model has {found} embeddings but its vocabulary {before.size}"
        raise UserError(f"{wrong}: model and vocabulary of two runs?")
    model.resize_token_embeddings(size, mean_resizing=False)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    source = torch.Generator().manual_seed(seed)
    for table in tables[:1] if model.config.tie_word_embeddings else tables:
        old, width = table[: before.size], table.shape[1]
        new = torch.randn(size - before.size, width, generator=source)
        if centroids is not None:
            points = torch.tensor(centroids, dtype=torch.float32)
            points = (points - points.mean(0)) @ torch.randn(
                len(points[0]), width, generator=source
            )
            new[: len(points)] = points / points.std(0).clamp(min=1e-6)
        table[before.size :] = old.mean(0) + old.std(0) * new
    return model


@reads("is no whole model", "run its step again")
def expand_saved(
    folder: Path, out: Path, inventory: str, units: int, seed: int, **options
) -> tuple[UnitVocabulary, UnitVocabulary]:
    """The model in `folder`, expanded (`expand_model`, whose `options` these are), into `out`, in
    the precision it has.  But for its tables it goes through memory a tensor at a time.

    Returns the vocabularies before and after.
    """
    before, config = _read_facts(folder)
    after, old, model = before.expand(units, inventory), empty_model(config), empty_model(config)
    for name, tensor in read_weights(folder, old, look=False):
        if name in (EMBEDDINGS, HEAD):
            table, kind = nn.Parameter(tensor.float()), tensor.dtype
            model.get_submodule(name.rpartition(".")[0]).register_parameter("weight", table)
    model.tie_weights()
    expand_model(model, before, after, seed, **options)
    tables = {EMBEDDINGS: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    changed = {name: table.weight.detach().to(kind) for name, table in tables.items()}
    out.mkdir(parents=True, exist_ok=True)
    copy_weights(old, folder, out, changed)
    model.config.save_pretrained(out)
    after.save(out)
    return before, after


def save_model(
    model: transformers.PreTrainedModel, vocabulary: UnitVocabulary, folder: Path
) -> None:
    """Write configuration, weights and vocabulary into `folder`.  One that is sharded is written by
    all processes together, into the folder of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if any(map(is_sharded, model.parameters())):
        write_joined(model, folder, PART_BYTES)
    else:
        save_module(model, folder / "model.safetensors")
    vocabulary.save(folder)


@reads("is no whole model", "run its step again")
def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, place: Place = lambda name: "cpu"
) -> tuple[transformers.PreTrainedModel, UnitVocabulary]:
    """Model and vocabulary that `save_model` or `adopt_model` left; no code from the folder is
    executed.  Each weight comes in `dtype` to its `place`, by its name."""
    vocabulary, config = _read_facts(folder)
    return load_weights(config, folder, dtype, place), vocabulary


@reads("is no whole model", "run its step again")
def load_sharded(
    folder: Path, device: torch.device, precision: str
) -> tuple[CausalLoss, UnitVocabulary]:
    """The same, shared out over all processes, of which none ever holds it whole; with its loss,
    since FSDP2 wants the outermost module.  `precision`: see `training.sharding.shard`."""
    vocabulary, config = _read_facts(folder)
    model = empty_model(config)
    model.tie_weights()
    scorer = shard(CausalLoss(model), device, precision)
    read_rows(scorer.model, folder)
    return scorer.eval(), vocabulary


def _read_facts(folder: Path) -> tuple[UnitVocabulary, transformers.PretrainedConfig]:
    vocabulary, config = UnitVocabulary.load(folder), read_config(folder)
    if 0 <= config.vocab_size - vocabulary.size < LARGEST_MULTIPLE:
        return vocabulary, config
    found = f"the model has {config.vocab_size} embeddings, its vocabulary {vocabulary.size} tokens"
    raise UserError(f"{folder}: {found}: files of two runs?")


# --- published models ----------------------------------------------------------------------------
# A folder as transformers saves it: `config.json`, a tokenizer, and weights as `model.safetensors`
# or `pytorch_model.bin`, whole or in shards.  Nothing is fetched and no code of the folder runs.
@reads("is no whole language model of transformers")
def adopt_model(
    folder: Path,
    out: Path,
    settings: LanguageModelSettings | None,
    units: int = 0,
    inventory: str = "",
) -> UnitVocabulary:
    """The model in `folder` as one of ours in `out`, with the precision that it has; `settings`
    say of which sizes it must be (None: any).  It is never in memory whole.

    With `units` it is a stage-2 model: behind its text it has so many units and the markers.

    Raises:
        UserError: no such folder, another architecture, other sizes than those of `settings`,
            weights or tokenizer missing, damaged, or of another number of embeddings.
    """
    config = read_config(folder)
    shape, wanted = vars(Shape.of_config(config)), settings.model_dump() if settings else {}
    for name in NAMES:
        if wanted.get(name, found := shape[name]) != found:
            wrong = f"language_model.{name} is {wanted[name]}, the model in {folder} has {found}"
            raise UserError(f"{wrong}: set it to that in the recipe")
    whole = read_tokenizer(folder, config).expand(units, inventory)
    if whole.size != config.vocab_size:
        more = f", {units} units and markers" if units else ""
        raise UserError(
            f"{folder}: the model has {config.vocab_size} embeddings; its pieces{more} are "
            f"{whole.size}: files of two models, or of another inventory?"
        )
    return _copied(config, whole, folder, out)


@reads("is no whole model", "run its step again")
def copy_model(folder: Path, out: Path) -> UnitVocabulary:
    """The model of another run, into `out`."""
    return _copied(read_config(folder), UnitVocabulary.load(folder), folder, out)


def _copied(
    config: transformers.PretrainedConfig, vocabulary: UnitVocabulary, folder: Path, out: Path
) -> UnitVocabulary:
    copy_weights(empty_model(config), folder, out)
    config.save_pretrained(out)
    vocabulary.save(out)
    return vocabulary
