"""Speed of training the language model.

    python benchmarks/training.py [--steps 24] [--rounds 3] [--precision bf16] [--device cuda]

The baseline is the release's way: transformers' Trainer, rows in random order, padded on the left
to the longest of their batch, attention written out, logits of every token.  Then a ladder of our
own loop, one change more in every arm.  All arms start from the same weights and read the same
rows; what counts is useful tokens, those of rows, a second.  Two mixes of rows: the lab's
instructions, and lengths as the released set has them; the model has the lab's size.  On a GPU it
is SmolLM2-135M with units, as in the recipe `small`, on the second mix alone, and our loop has
torch's fused attention from its first arm on.  Parity: the mean loss of the same rows with the same
weights, in fp32, baseline against packed and against compiled.

A round is a whole training with all it sets up, except that compiled code is kept from the first,
unmeasured one, and that the weights lie on the device beforehand.  How long every training took
goes to stderr at once, so that a run that is cut off leaves something.

Model FLOP/s count what the rows need (`Shape.flops_per_token`, logits only where there is a loss),
not padding, and stand beside the matmul peak measured in the same run: fp32 on a CPU, on a GPU
that of the precision.
"""

from __future__ import annotations

import argparse
import copy
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import finish, measure
from speechgpt_lib.language_model.model import CausalLoss
from speechgpt_lib.language_model.packing import PackedBatches, collate_packed, pack
from speechgpt_lib.language_model.planning import Shape
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow, collate
from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.attention import NAME, training_attention
from speechgpt_lib.training.devices import compile_layers, matmul_peak
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions

LAB = Shape(vocabulary=2300, hidden_size=192, layers=4, heads=6, feed_forward=512, tied=True)
SMALL = Shape(50176, 576, 30, heads=9, feed_forward=1536, tied=True, key_value_heads=3)
BATCH = {"cpu": 4096, "cuda": 16384}  # tokens
IGNORED = -100
COMPILER = shutil.which("g++")  # without one the compiled arm is left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--device", choices=tuple(BATCH), default="cpu")
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    device = arguments.device
    shape, ratios, parity, speeds = LAB if device == "cpu" else SMALL, {}, {}, {}
    model, names = build(shape).to(device), {"fp32": "no", "bf16": "bf16"}
    peaks = {
        name: matmul_peak(device, precision, torch.get_num_threads(), seconds=1.0)
        for name, precision in names.items()
    }
    print(
        "matmul peak: "
        + ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()),
        flush=True,
    )
    mixes = {"lab": (lab_rows(1600), 512), "released": (released_rows(600), 1024)}
    if device != "cpu":
        mixes = {"released": (released_rows(2400, vocabulary=shape.vocabulary), 1024)}
    against = "fp32" if device == "cpu" or arguments.precision == "no" else "bf16"
    for mix, (rows, block) in mixes.items():
        peak = against, peaks[against]
        found, speeds[mix] = ladder(mix, model, shape, rows, block, arguments, peak)
        ratios, parity = ratios | found, parity | parity_of(mix, model, rows[:24], block)
    print(f"difference of the mean loss from the baseline's, fp32: {parity}")
    parity |= {"matmul_peak_gflops": {name: round(peak / 1e9) for name, peak in peaks.items()}}
    facts = {name: vars(arguments)[name] for name in ("steps", "rounds", "precision")}
    facts |= {"tokens_per_batch": BATCH[device], "useful_tokens_per_second": speeds}
    finish("training", ratios, parity, device, arguments.out, **facts)


def build(shape: Shape) -> LlamaForCausalLM:
    config = shape.config(max_position_embeddings=2048, pad_token_id=0, attn_implementation="eager")
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


# --- rows -----------------------------------------------------------------------------------------
def lab_rows(count: int, seed: int = 0) -> list[TokenRow]:
    """Instructions as the lab has them: 40 tokens of template and words, about 85 units.

    Half of them listen (a short answer), half speak.
    """
    rng, rows = random.Random(seed), []
    for k in range(count):
        units, words = max(28, min(150, round(rng.gauss(85, 25)))), rng.randrange(5, 16)
        prompt, answer = (26 + units, words) if k % 2 else (26 + words, units)
        rows.append(_row(rng, prompt, answer))
    return rows


def released_rows(count: int, seed: int = 0, vocabulary=LAB.vocabulary) -> list[TokenRow]:
    """Lengths as in the released set: English of 2 to 20 s, 25 units a second.

    Each row has a prefix of 130 tokens without a loss.
    """
    rng, rows = random.Random(seed), []
    for _ in range(count):
        seconds = min(20.0, max(2.0, rng.lognormvariate(1.9, 0.6)))
        rows.append(_row(rng, 130, round(25 * seconds + 4 * seconds) + 20, vocabulary))
    return rows


def _row(rng: random.Random, prompt: int, answer: int, vocabulary=LAB.vocabulary) -> TokenRow:
    return TokenRow(
        [1, *(rng.randrange(3, vocabulary) for _ in range(prompt + answer - 1))],
        [0.0] * prompt + [1.0] * answer,
    )


# --- arms -----------------------------------------------------------------------------------------
class AllLogits(CausalLoss):
    """The same loss from the logits of every token."""

    def forward(self, ids, weights, positions=None):
        logits = (
            self.model(input_ids=ids, position_ids=positions, use_cache=False)
            .logits.flatten(0, 1)
            .float()
        )
        targets, weights = (
            nn.functional.pad(x[:, 1:], (0, 1)).flatten() for x in (ids, weights)
        )  # the last token predicts nothing
        return (
            nn.functional.cross_entropy(logits, targets, reduction="none") * weights
        ).sum(), weights.sum()


class RandomOrder:
    """Batches of rows as they come.

    There are as many as fit the budget when all are as long as the longest of the set.
    """

    def __init__(self, rows: list[TokenRow], per_batch: int):
        self.rows, self.per_batch = rows, per_batch

    def rows_at(self, step: int) -> list[TokenRow]:
        start = step * self.per_batch
        return [self.rows[(start + k) % len(self.rows)] for k in range(self.per_batch)]

    def __call__(self, step: int, rank: int = 0, world_size: int = 1):
        return collate(self.rows_at(step))


def ladder(
    mix: str,
    model: LlamaForCausalLM,
    shape: Shape,
    rows: list[TokenRow],
    block: int,
    arguments,
    peak: tuple[str, float],
) -> tuple[dict[str, float], dict[str, int]]:
    """The ratios of all arms to the baseline, and their useful tokens a second, printed as well.

    peak: of which precision, and FLOP/s.
    """
    steps, device, batch = arguments.steps, arguments.device, BATCH[arguments.device]
    plan, plain = (lambda epoch, step: rows), RandomOrder(rows, batch // max(map(len, rows)))
    useful = {"random": sum(len(row) for k in range(steps) for row in plain.rows_at(k))}
    like, packed = EpochBatches(plan, batch, 0), PackedBatches(plan, batch, 0, block)
    for name, batches in (("like", like), ("packed", packed)):
        useful[name] = sum(int((batches(k)[0] != 0).sum()) for k in range(steps))
    settings = Optimization(
        steps=steps,
        learning_rate=1e-4,
        warmup=0,
        precision=arguments.precision,
        save_every_s=1e9,
        log_every=steps,
    )
    compiled = settings.model_copy(update={"compile": True})

    def run(loss, batches, attention="auto", settings=settings):
        return _ours(model, loss, batches, settings, attention, device)

    arms = {
        "release's way": (
            "random",
            lambda: _trainer(model, plain, steps, arguments.precision, device),
        ),
        "our loop": ("random", lambda: run(AllLogits, plain)),
        "logits where they count": ("random", lambda: run(CausalLoss, plain)),
        "rows of like length": ("like", lambda: run(CausalLoss, like)),
        "like length, compiled": ("like", lambda: run(CausalLoss, like, settings=compiled)),
        f"packed, blocks of {block}": ("packed", lambda: run(CausalLoss, packed)),
        "packed, attention by row": ("packed", lambda: run(CausalLoss, packed, NAME)),
    }
    if device != "cpu":
        arms["packed, compiled"] = "packed", lambda: run(CausalLoss, packed, settings=compiled)
    if not COMPILER:
        arms = {name: arm for name, arm in arms.items() if not name.endswith("compiled")}
    told = {name: _told(name, arm, device) for name, (_, arm) in arms.items()}
    seconds = measure(told, arguments.rounds)
    speeds = {name: useful[order] / seconds[name] for name, (order, _) in arms.items()}
    base, flops_per_token = speeds["release's way"], flops_needed(shape, rows)
    kind, peak = peak
    lengths = sorted(map(len, rows))
    print(f"{mix}: {len(rows)} rows of {lengths[0]} to {lengths[-1]} tokens, {steps} steps")
    for name, speed in speeds.items():
        flops = speed * flops_per_token
        share = f"{flops / 1e9:6.1f} GFLOP/s = {flops / peak:.2f} × {kind} peak"
        print(f"  {name:26} {speed:8.0f} useful tokens/s   ratio {speed / base:5.2f}   {share}")
    best = max(speeds, key=speeds.get)
    ratios = {
        f"{mix}": speeds[best] / base,
        f"{mix}_flops_of_{kind}_peak": speeds[best] * flops_per_token / peak,
    }
    ratios |= {
        f"{mix}: {name}": speed / base for name, speed in speeds.items() if name != "release's way"
    }
    return ratios, {name: round(speed) for name, speed in speeds.items()}


def _told(name: str, arm: Callable[[], None], device: str) -> Callable[[], None]:
    """The arm, that says on stderr how long it took once its device has done all of it."""

    def run() -> None:
        started = time.perf_counter()
        arm()
        if device != "cpu":
            torch.cuda.synchronize()
        print(f"{name}: {time.perf_counter() - started:.2f} s", file=sys.stderr, flush=True)

    return run


def flops_needed(shape: Shape, rows: list[TokenRow]) -> float:
    """Forward and backward, per token of `rows` on average."""
    tokens, counted = sum(map(len, rows)), sum(w > 0 for row in rows for w in row.weights)
    unread_logits = 6 * shape.vocabulary * shape.hidden_size * (tokens - counted) / tokens
    return shape.flops_per_token(round(tokens / len(rows))) - unread_logits


def _ours(
    model: LlamaForCausalLM,
    loss: type[CausalLoss],
    batches,
    settings: Optimization,
    attention: str,
    device: str,
) -> None:
    own = copy.deepcopy(model)

    def step_function(phase, modules, batch, step):
        total, weight = modules["model"](*(tensor.to(device) for tensor in batch))
        return total, weight, {}

    with tempfile.TemporaryDirectory() as folder, training_attention(own, device, attention):
        task = Task({"model": loss(own)}, step_function, batches)
        train(task, settings, Path(folder), TrainingOptions(seed=0, device=device))


def _trainer(
    model: LlamaForCausalLM, batches: RandomOrder, steps: int, precision: str, device: str
) -> None:
    """transformers' Trainer with left padding and an attention mask."""
    rows = [row for step in range(steps) for row in batches.rows_at(step)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batches.per_batch,
            max_steps=steps,
            learning_rate=1e-4,
            bf16=precision == "bf16",
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        Trainer(
            copy.deepcopy(model), arguments, train_dataset=rows, data_collator=left_padded
        ).train()


def left_padded(rows: list[TokenRow]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids, mask = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    labels = torch.full((len(rows), longest), IGNORED)
    for k, row in enumerate(rows):
        place = slice(longest - len(row), longest)
        ids[k, place], mask[k, place] = torch.tensor(row.ids), 1
        labels[k, place] = torch.tensor(
            [i if w else IGNORED for i, w in zip(row.ids, row.weights, strict=True)]
        )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# --- parity ---------------------------------------------------------------------------------------
@torch.inference_mode()
def parity_of(
    mix: str, model: LlamaForCausalLM, rows: list[TokenRow], block: int
) -> dict[str, float]:
    """Difference of the mean loss from the baseline's."""
    device = model.eval().device

    def there(tensors) -> list[torch.Tensor]:
        return [tensor.to(device) for tensor in tensors]

    def baseline_of(row: TokenRow) -> float:
        batch = left_padded([row])
        loss = model(**dict(zip(batch, there(batch.values()), strict=True))).loss.item()
        return loss * sum(w > 0 for w in row.weights[1:])

    baseline = sum(map(baseline_of, rows))
    blocks = [[rows[k] for k in numbers] for numbers in pack([len(row) for row in rows], block)]
    ours = {"packed": CausalLoss(model)(*there(collate_packed(blocks, block)))}
    if COMPILER:
        compile_layers([model])
        ours["compiled"] = CausalLoss(model)(*there(collate(rows)))
        compile_layers([model], undo=True)
    return {
        f"{mix}, {name}": round(abs(baseline - loss.item()) / weight.item(), 8)
        for name, (loss, weight) in ours.items()
    }


if __name__ == "__main__":
    main()
