"""What a training will need, before it is started: parameters, memory, tokens, hours, disk.

The estimates are sums of what is kept; `tests/language_model/test_planning.py` holds them against
measured runs (15 %).  LLaMA has a gated feed-forward layer and no biases; its keys and values may
have fewer heads than its queries (grouped-query attention), which share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import transformers

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.families import read_config
from speechgpt_lib.language_model.vocabulary import ADDED_MARKERS, TOKENIZER, Vocabulary
from speechgpt_lib.recipes.schema import LoraSettings, Recipe

MFU = 0.4  # of the matmul peak, unless told otherwise; benchmarks/plan.py measures it on a GPU
PEAK_TFLOPS = 989.0  # H100 and H200 in bf16, dense
BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "4bit": 0.5}  # a weight of a frozen matrix
BLOCK = 1024  # tokens
LOGITS_AT_ONCE = 1 << 25  # of the loss: 134 MB; lab's 4096 tokens stay below it
RESERVE = 0.08  # of a GPU's memory that its context, the allocator's gaps and communication take
NAMES = {  # of what a shape has in transformers
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "vocabulary": "vocab_size",
    "tied": "tie_word_embeddings",
    "key_value_heads": "num_key_value_heads",
    "head_width": "head_dim",
}


@dataclass(frozen=True)
class Shape:
    """A LLaMA of `vocabulary` tokens; `tied` where one table serves input and output."""

    vocabulary: int
    hidden_size: int
    layers: int
    heads: int
    feed_forward: int
    tied: bool = False
    key_value_heads: int | None = None  # as many as `heads`
    head_width: int | None = None  # an even share of `hidden_size`

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        """Of a recipe's model with its units: of the imported folder, where that is at hand."""
        s, markers = recipe.language_model, ADDED_MARKERS
        folder, has_units = model_folder(recipe)
        if folder is None:
            tied = recipe.imports.text_model is None and recipe.imports.stage2 is None
            shape = cls(s.vocabulary, s.hidden_size, s.layers, s.heads, s.feed_forward, tied)
        else:
            shape = cls.of_config(read_config(folder))
            if has_units:
                return shape
            if not (folder / TOKENIZER).is_file():
                markers = Vocabulary.markers
        size = shape.vocabulary + recipe.units.clusters + len(markers)
        return replace(shape, vocabulary=-(-size // s.multiple) * s.multiple)

    @classmethod
    def of_config(cls, config: transformers.PretrainedConfig) -> Shape:
        """Of a model's configuration."""
        values = config.to_dict()
        return cls(**{ours: values.get(theirs) for ours, theirs in NAMES.items()})

    def config(self, **others) -> transformers.LlamaConfig:
        """The shape as transformers takes it."""
        return transformers.LlamaConfig(
            **{NAMES[ours]: size for ours, size in vars(self).items()}, **others
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer."""
        d, (queries, keys) = self.hidden_size, self.attention_widths
        return 2 * d * (queries + keys) + 3 * d * self.feed_forward + 2 * d

    @property
    def attention_widths(self) -> tuple[int, int]:
        """Of the queries of all heads, and of the keys (and values)."""
        head = self.head_width or self.hidden_size // self.heads
        return self.heads * head, (self.key_value_heads or self.heads) * head

    @property
    def table_parameters(self) -> int:
        """Weights of the embeddings of input and output."""
        return self.vocabulary * self.hidden_size * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.layers * self.layer_parameters + self.table_parameters + self.hidden_size

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of adapters of `rank` on `targets`, of which a LLaMA must have each."""
        d, ff, (queries, keys) = self.hidden_size, self.feed_forward, self.attention_widths
        sizes = dict.fromkeys(("q_proj", "o_proj"), d + queries)
        sizes |= dict.fromkeys(("k_proj", "v_proj"), d + keys)
        sizes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), d + ff)
        if strange := [name for name in targets if name not in sizes]:
            raise UserError(f"LoRA on {strange[0]}: a LLaMA has {', '.join(sizes)}")
        return self.layers * rank * sum(sizes[name] for name in targets)

    def flops_per_token(self, block: int, trained: float = 1.0) -> float:
        """Forward and backward: 6 a weight of every matrix product, and attention's products.

        Attention is causal: half a block on average.  `trained` is 1 where all weights learn, 0 on
        a frozen base, whose gradients are not computed: 2/3 of the work is left.
        """
        d = self.hidden_size
        matrices = self.layers * (self.layer_parameters - 2 * d) + self.vocabulary * d
        attention = 6 * self.layers * block * self.attention_widths[0]
        return (6 * matrices + attention) * (2 + trained) / 3


def model_folder(recipe: Recipe) -> tuple[Path | None, bool]:
    """The folder of the model that a recipe imports and builds on, where one is at hand, and
    whether it has its units."""
    data, imports = Path(recipe.data).expanduser(), recipe.imports
    for source, has_units in ((imports.stage2, True), (imports.text_model, False)):
        if source and (folder := data / Path(source).expanduser()).exists():
            return folder, has_units
    return None, False


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


def block_bytes(shape: Shape, tokens: int, precision: str) -> int:
    """What the backward pass of one block needs of its forward pass, with fused attention.

    For each token ten numbers of the block's width (input of both norms and what they make of it,
    queries, keys, values, result of attention) and four of its feed-forward width (gate, its
    activation, up, their product).  Under bf16 the residual stream and the norms stay fp32.
    """
    d, ff = shape.hidden_size, shape.feed_forward
    wide = 34 * d + 8 * ff if precision == "bf16" else 40 * d + 16 * ff
    return tokens * (wide + 4 * shape.heads + 8)


def lora_block_bytes(shape: Shape, lora: LoraSettings, tokens: int) -> int:
    """The same of a frozen block with adapters: no weight of its own wants its input or what a norm
    makes of it; each adapter wants its input in bf16 and the mask of its dropout, a byte, and what
    leads to its second matrix.  Where the base is bf16 or coarser, the residual stream is, too."""
    d, ff = shape.hidden_size, shape.feed_forward
    wide = (22 if lora.base == "fp32" else 16) * d + 6 * ff
    inputs = {"o_proj": shape.attention_widths[0], "down_proj": ff}
    for name in lora.targets:
        wide += inputs.get(name, d) * (3 if lora.dropout else 2) + 2 * lora.rank
    return tokens * (wide + 4 * shape.heads + 8)


def positions_at_once(vocabulary: int) -> int:
    """Of how many positions the loss computes logits at a time."""
    return max(256, LOGITS_AT_ONCE // vocabulary // 256 * 256)


def activation_bytes(
    shape: Shape,
    tokens: int,
    precision: str,
    checkpointing: bool,
    lora: LoraSettings | None = None,
) -> int:
    """What is kept between the forward and the backward pass of `tokens` tokens in one process.

    With checkpointing a block keeps its input alone.  Each token has a row of log-probabilities,
    but where the vocabulary is so large that the loss computes them again.
    """
    d, at_once = shape.hidden_size, tokens <= positions_at_once(shape.vocabulary)
    halved = lora is not None and lora.base != "fp32"  # the residual stream is bf16
    block = lora_block_bytes(shape, lora, tokens) if lora else block_bytes(shape, tokens, precision)
    if checkpointing:
        block = tokens * (2 if halved else 4) * d
    row = (10 if precision == "bf16" and at_once else 12) - 6 * halved
    return shape.layers * block + tokens * (4 * shape.vocabulary * at_once + row * d)


def _most_bytes(
    shape: Shape,
    tokens: int,
    precision: str,
    checkpointing: bool,
    lora: LoraSettings | None = None,
) -> int:
    """Activations, and the gradient of the log-probabilities or what is computed again: they and
    it of some positions, or a block."""
    again = block_bytes(shape, tokens, precision) if checkpointing else 0
    kept = activation_bytes(shape, tokens, precision, checkpointing, lora)
    some = positions_at_once(shape.vocabulary)
    loss = shape.vocabulary * (4 * tokens if tokens <= some else 2 * 4 * some)
    return kept + max(loss, again)


def full_memory(
    shape: Shape, gpus: int, tokens: int, precision: str = "bf16", checkpointing: bool = True
) -> Memory:
    """Full fine-tuning, everything sharded over `gpus` (FSDP2).

    That is fp32 weights, gradients and two moments, and what is at work whole: two blocks and the
    tables, in the precision of the products; on a single GPU in bf16 a copy of all weights.
    """
    size = 2 if precision == "bf16" else 4
    gathered = size * (2 * shape.layer_parameters + shape.table_parameters)
    if gpus == 1:
        gathered = 2 * shape.parameters if precision == "bf16" else 0
    own = -(-shape.parameters // gpus)
    gradients = 4 * own + (gathered // 2 if gpus > 1 else 0)
    activations = _most_bytes(shape, tokens, precision, checkpointing)
    return Memory(4 * own + gathered, gradients, 8 * own, activations)


def lora_memory(
    shape: Shape, lora: LoraSettings, tokens: int, checkpointing: bool = True
) -> Memory:
    """Adapters on a frozen base that every GPU holds whole, stored as `adapters.store_as` does."""
    adapters = shape.lora_parameters(lora.rank, lora.targets)
    weights = int(shape.layers * shape.layer_parameters * BYTES[lora.base])
    weights += (4 if lora.base == "fp32" else 2) * shape.table_parameters
    activations = _most_bytes(shape, tokens, "bf16", checkpointing, lora)
    return Memory(weights + 4 * adapters, 4 * adapters, 8 * adapters, activations)


@dataclass(frozen=True)
class StagePlan:
    """One stage: `tokens` of a GPU and step, in `accumulation` turns of `tokens_at_once`."""

    name: str
    steps: int
    tokens: int
    accumulation: int
    tokens_at_once: int
    memory: Memory
    hours: float


def plan(
    recipe: Recipe,
    gpus: int,
    gpu_memory: float,
    mfu: float = MFU,
    peak_tflops: float = PEAK_TFLOPS,
    seconds: Callable[[str, int], float] | None = None,
) -> dict:
    """What the three stages of `recipe` need on `gpus` GPUs of `gpu_memory` GB.

    seconds: what `timing.measure` found, in place of `mfu` and `peak_tflops`.  Returns {recipe,
    gpus, parameters, mfu, stages, hours, disk_gb, changes}: `mfu` is None where seconds were
    measured; `changes` of the recipe make it fit as planned.  Raises UserError where a stage can't
    fit even a block at a time.
    """
    shape, flops = Shape.of(recipe), gpus * mfu * peak_tflops * 1e12  # a second, of all GPUs
    stages = [_stage(f"stage{k}", recipe, shape, gpus, gpu_memory, flops) for k in (1, 2, 3)]
    if seconds:
        stages = [replace(s, hours=s.steps * seconds(s.name, s.tokens) / 3600) for s in stages]
    hours = sum(stage.hours for stage in stages)
    # Two checkpoints (weights and two moments in fp32, and the copy being written), three models.
    disk = shape.parameters * (2 * 16 + 3 * 2) / 1e9
    facts = {"recipe": recipe.name, "gpus": gpus, "parameters": shape.parameters}
    facts["mfu"] = None if seconds else mfu
    facts["changes"] = [
        f"{s.name}.optimization.accumulation={s.accumulation}"
        for s in stages
        if s.accumulation > dict(recipe)[s.name].optimization.accumulation
    ]
    facts |= {
        "vocabulary": shape.vocabulary,
        "shape_of": str(model_folder(recipe)[0] or "the recipe"),
    }
    return facts | {"stages": stages, "hours": hours, "disk_gb": disk}


def _stage(
    name: str, recipe: Recipe, shape: Shape, gpus: int, gpu_memory: float, flops: float
) -> StagePlan:
    settings = dict(recipe)[name]
    lora = recipe.stage3.lora if name == "stage3" else None
    budget = gpu_memory * 1e9 * (1 - RESERVE)

    def memory(tokens: int) -> Memory:
        options = {"checkpointing": settings.checkpointing}
        if lora:
            return lora_memory(shape, lora, tokens, **options)
        return full_memory(shape, gpus, tokens, **options)

    needed = memory(BLOCK)
    if needed.total > budget:
        cure = "lora.base: int8 or 4bit" if lora else "more GPUs (all of it is shared out)"
        if not settings.checkpointing:
            cure = f"{name}.checkpointing: true, {cure}"
        parts = ", ".join(f"{part} {size / 1e9:.0f}" for part, size in vars(needed).items())
        raise UserError(
            f"{name} of {recipe.name} needs {needed.total / 1e9:.0f} GB on each of {gpus} GPUs for "
            f"a single block of {BLOCK} tokens ({parts}), and there are {budget / 1e9:.0f}: "
            f"take GPUs with more memory, {cure}, or a smaller model"
        )
    steps, tokens = settings.optimization.steps, settings.tokens_per_batch
    share = -(-tokens // gpus)
    blocks = max(1, share // BLOCK)
    most = max(n for n in range(1, blocks + 1) if memory(n * BLOCK).total <= budget)
    turns = min(blocks, max(settings.optimization.accumulation, -(-blocks // most)))
    at_once = -(-blocks // turns) * BLOCK
    work = shape.flops_per_token(BLOCK, trained=0.0 if lora else 1.0)
    hours = steps * tokens * work / flops / 3600
    return StagePlan(name, steps, share, turns, at_once, memory(at_once), hours)


def render(found: dict) -> str:
    """A plan as a table for people."""
    speed = f"MFU {found['mfu']:.0%} assumed" if found["mfu"] else "speed measured here"
    lines = [
        f"{found['recipe']}: {found['parameters'] / 1e9:.3f} billion parameters, "
        f"{found['gpus']} GPUs, {speed}",
        f"{found['vocabulary']} tokens in all; sizes are those of {found['shape_of']}",
        f"{'':8} {'steps':>7} {'tokens/step':>12} {'at once':>8} {'accum.':>6} {'weights':>8} "
        f"{'grads':>7} {'optim.':>7} {'activ.':>7} {'GB/GPU':>7} {'hours':>8}",
    ]
    for s in found["stages"]:
        weights, *others = (size / 1e9 for size in (*vars(s.memory).values(), s.memory.total))
        sizes = " ".join([f"{weights:8.2f}", *(f"{size:7.2f}" for size in others)])
        lines.append(
            f"{s.name:8} {s.steps:7} {s.tokens * found['gpus']:12} {s.tokens_at_once:8} "
            f"{s.accumulation:6} {sizes} {s.hours:8.2f}"
        )
    disk = f"{found['disk_gb']:.0f} GB of disk for two checkpoints and the three models"
    lines.append(f"in all {found['hours']:.1f} hours, {disk}")
    if found["changes"]:
        lines.append("it fits with " + " ".join(f"--set {change}" for change in found["changes"]))
    return "\n".join(lines)
