"""The one training loop: batches and a step function in, trained modules and a metrics log out.

HuBERT, the vocoder's GAN, the text-to-unit model and all stages of the language model run through `train`.  It is exact by
construction: a batch is a pure function of the step number, randomness is re-seeded at every step, the schedule counts steps and
not seconds.  So a run that is killed and started again ends in the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.checkpoints import find_checkpoint, save_checkpoint
from speechgpt_lib.training.compilation import compile_layers
from speechgpt_lib.training.log import MetricsLog
from speechgpt_lib.training.log import read_metrics as read_metrics
from speechgpt_lib.training.sharding import (
    Whole,
    copy_back,
    exchange_gradients,
    load_optimizer,
    shard,
    whole,
)

MATRICES = " matrices"  # what follows a phase's name in the name of the optimizer of its matrices


def make_optimizers(
    modules: list[torch.nn.Module], settings: Optimization
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for everything; or, with `matrix_learning_rate`, Muon for the matrices between layers and AdamW for the rest.

    Muon (Jordan 2024; its rate scaled as in Liu et al. 2025, arXiv 2502.16982) makes the update of a matrix orthogonal, so that
    directions of small gradients are learned as fast as those of large ones.  All matrices move, and they grow, so it wants far more
    weight decay than AdamW.  Returns optimizers by what follows the phase's name.
    """
    tables = {
        id(p)
        for module in modules
        for m in module.modules()
        if isinstance(m, torch.nn.Embedding)
        for p in m.parameters()
    }
    matrices, others = [], []
    for name, p in (named for module in modules for named in module.named_parameters()):
        between_layers = p.ndim == 2 and id(p) not in tables and "lm_head" not in name
        if p.requires_grad:
            (matrices if settings.matrix_learning_rate and between_layers else others).append(p)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if others:
        group = {"params": others, "scale": 1.0}
        optimizers[""] = torch.optim.AdamW(
            [group],
            settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    if matrices:
        group = {
            "params": matrices,
            "scale": settings.matrix_learning_rate / settings.learning_rate,
        }
        optimizers[MATRICES] = torch.optim.Muon(
            [group],
            settings.learning_rate,
            settings.matrix_weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
    return optimizers


def learning_rate_at(step: int, settings: Optimization) -> float:
    """Linear warm-up, plateau, then a straight line or half a cosine down to `floor`; `step` counts from 0."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup))
    progress = step / settings.steps
    if progress > settings.hold:
        left = (1 - progress) / (1 - settings.hold)
        if settings.schedule == "cosine":
            left = settings.floor + (1 - settings.floor) * (1 - math.cos(math.pi * left)) / 2
        rate *= max(settings.floor, left)
    return rate


def train(
    modules: dict[str, torch.nn.Module],
    step_function: Callable[..., tuple[torch.Tensor, torch.Tensor | float, dict[str, Any]] | None],
    batch_at: Callable[[int, int, int], Any],
    settings: Optimization,
    work: Path,
    *,
    seed: int,
    world_size: int = 1,
    device: str = "cpu",
    phases: dict[str, list[str]] | None = None,
    learning_rates: dict[str, float] | None = None,
    on_log: Callable[[dict], None] | None = None,
    visits: Mapping[int, Callable[[], None]] | None = None,
    flops_per_token: float = 0.0,
    name_rows: Callable[[int, int, int], str] | None = None,
) -> dict[str, Any]:
    """Train `modules` in place and return a summary {steps, resumed_from, seconds, loss, …}.

    Args:
        modules: what is trained, by name.
        step_function: called as `step_function(phase, modules, batch, step)`; returns (sum of losses, their weight, metrics) or
            None to skip the phase.  The loss minimised is the sum over all processes divided by the weight over all processes,
            so that two processes with unequal batches equal one process with both.  A metric "tokens" (int) is added up over steps.
        batch_at: called as `batch_at(step, rank, world_size)`, must depend on nothing else.
        work: folder for `metrics.jsonl`, `tensorboard/` and `checkpoints/`; training resumes from what it finds there.
        world_size: the number of processes this training must have; any other is refused.
        phases: optimizer name → names of the modules it drives, run in order within a step (a GAN has two).
        learning_rates: optimizer name → factor on the learning rate.
        visits: step → what the first process does when so many steps are made and saved, such as listening to the modules.  After a
            kill a visit may be made again.
        flops_per_token: forward and backward, for `mfu` in the log.
        name_rows: called as `batch_at` is, says in words which rows are in that batch, for the error about a loss that is not finite.

    Raises:
        UserError: wrong world size, no memory for the batch, or a loss that is not finite (the last good checkpoint is kept).
        KeyboardInterrupt: stopped by a signal or the clock, and saved.
    """
    # 1. Devices and processes -------------------------------------------------------------------------------------------------
    AcceleratorState._reset_state()  # an earlier training in this process may have had another precision
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=settings.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=phases is not None)],
    )
    if accelerator.num_processes != world_size:
        raise UserError(
            f"this training was meant for {world_size} process(es) but runs in {accelerator.num_processes}: start it with "
            f"`speechgpt train STEP --run RUN --processes {world_size}` (`accelerate launch --cpu` would let each process train alone)"
        )
    phases = phases or {"model": list(modules)}
    bare = dict(modules)
    sharded = settings.sharding == "full" and world_size > 1
    if sharded and (len(phases) > 1 or visits):
        raise UserError(
            f"a training with {len(phases)} optimizers or visits can't be sharded: set sharding: none"
        )
    # 2. Resume: weights before they are shared out, moments after -----------------------------------------------------------------
    checkpoints = work / "checkpoints"
    checkpoint = find_checkpoint(checkpoints)
    first, tokens_before = (
        (checkpoint.load_modules(bare), checkpoint.tokens) if checkpoint else (0, 0)
    )
    if sharded:
        modules = {
            name: shard(module, accelerator.device, settings.precision)
            for name, module in bare.items()
        }
    if settings.compile:
        compile_layers(modules.values())
    optimizers = {
        f"{phase}{suffix}": optimizer
        for phase, names in phases.items()
        for suffix, optimizer in make_optimizers(
            [modules[name] for name in names], settings
        ).items()
    }
    if checkpoint:
        checkpoint.load_optimizers(optimizers, load_optimizer)
    if not sharded:
        modules = {name: accelerator.prepare(module) for name, module in modules.items()}
        optimizers = {
            name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()
        }
    # 3. A log, and visits that are due --------------------------------------------------------------------------------------------
    log = MetricsLog(
        work / "metrics.jsonl", accelerator, first, tokens_before, settings, flops_per_token
    )
    visits = dict(visits or {}) if accelerator.is_main_process else {}
    if first in visits:  # saved, but perhaps killed while it was there
        visits[first]()
    started = saved = time.perf_counter()
    own_tokens = 0
    summary: dict[str, Any] = {}
    # 4. Steps -------------------------------------------------------------------------------------------------------------------
    with StopRequest() as stop:
        for step in range(first, settings.steps):
            # A process that accumulates stands for as many processes, one after the other.
            parts = [
                accelerator.process_index * settings.accumulation + part
                for part in range(settings.accumulation)
            ]
            of = world_size * settings.accumulation
            batches = []
            for part in parts:
                _seed(seed, step, part)
                batches.append(batch_at(step, part, of))
            record: dict[str, Any] = {}
            for phase, names in phases.items():
                rate = learning_rate_at(step, settings) * (learning_rates or {}).get(phase, 1.0)
                own = [
                    optimizer
                    for name, optimizer in optimizers.items()
                    if name in (phase, phase + MATRICES)
                ]
                for optimizer in own:
                    optimizer.zero_grad()
                parameters = [
                    p for name in names for p in modules[name].parameters() if p.requires_grad
                ]
                with _explained(step, settings):
                    found = _backward(
                        accelerator,
                        phase,
                        names,
                        modules,
                        step_function,
                        batches,
                        parts,
                        step,
                        seed,
                        parameters,
                    )
                if found is None:
                    continue
                losses, metrics = found
                norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
                if not torch.isfinite(
                    norm if world_size > 1 else norm + sum(losses)
                ):  # the norm is the same everywhere
                    where = [
                        name_rows(step, part, of) if name_rows else ""
                        for part, x in zip(parts, losses, strict=True)
                        if not x.isfinite()
                    ]
                    raise UserError(
                        _not_finite(accelerator, phase, step, work, sum(losses), norm, where)
                    )
                for optimizer in own:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["scale"]
                    optimizer.step()
                own_tokens += metrics.pop("tokens", 0)
                prefix = "" if len(phases) == 1 else f"{phase}_"
                record |= {
                    f"{prefix}loss": sum(losses),
                    f"{prefix}grad_norm": norm,
                    "lr": rate,
                    **metrics,
                }
            # 5. Log and save ------------------------------------------------------------------------------------------------------
            last = step + 1 == settings.steps
            if settings.most_tokens:
                last = (
                    last or tokens_before + _total(accelerator, own_tokens) >= settings.most_tokens
                )
            if last or (step + 1) % settings.log_every == 0:
                summary = log.write(
                    step + 1, record, tokens_before + _total(accelerator, own_tokens)
                )
                if on_log:
                    on_log(summary)
            if settings.most_hours and time.perf_counter() - started > 3600 * settings.most_hours:
                stop.requested = True
            must_stop = (
                _total(
                    accelerator,
                    stop.requested or time.perf_counter() - saved > settings.save_every_s,
                )
                > 0
            )
            if (must_stop or step + 1 in visits) and not last:
                kept = (
                    {name: Whole(module) for name, module in modules.items()} if sharded else bare
                )
                moments = {
                    name: Whole(o) if sharded else o.optimizer for name, o in optimizers.items()
                }
                tokens = (
                    tokens_before + _total(accelerator, own_tokens)
                    if must_stop
                    else tokens_before + own_tokens
                )
                if accelerator.is_main_process:
                    save_checkpoint(checkpoints, step + 1, kept, moments, settings.keep, tokens)
            if step + 1 in visits:
                visits[step + 1]()
            if must_stop and not last:
                saved = time.perf_counter()
                if _total(accelerator, stop.requested) > 0:
                    raise KeyboardInterrupt(
                        f"stopped after step {step + 1}; run it again to resume"
                    )
            if last:
                break
    for name in bare if sharded else ():
        copy_back(modules[name], bare[name])
    if settings.compile:
        compile_layers(bare.values(), undo=True)
    kept = {name: value for name, value in summary.items() if name not in ("step", "seconds_left")}
    return {"steps": summary.get("step", first), "resumed_from": first, **kept}


def _backward(
    accelerator: Accelerator,
    phase: str,
    names: list[str],
    modules: dict[str, torch.nn.Module],
    step_function: Callable,
    batches: list,
    parts: list[int],
    step: int,
    seed: int,
    parameters: list[torch.nn.Parameter],
) -> tuple[list[torch.Tensor], dict] | None:
    """Gradients of the mean over all processes and parts; returns what each part here adds to that mean, and the metrics of the parts.

    The mean is over the weight of all of them, which is known at the end only.  So the loss of several parts goes back as a sum, and the
    gradients are divided; that of a single part is divided before.
    """
    world, losses, own_weight, metrics = accelerator.num_processes, [], 0.0, {}
    for part, batch in zip(parts, batches, strict=True):
        if len(parts) > 1:
            _seed(seed, step, part)
        result = step_function(phase, modules, batch, step)
        if result is None:
            return None
        loss_sum, weight, found = result
        metrics = found | {
            name: value + metrics.get(name, 0)
            for name, value in found.items()
            if isinstance(value, int)
        }
        weight = torch.as_tensor(weight, dtype=torch.float32, device=accelerator.device)
        if len(parts) == 1:
            total = accelerator.reduce(weight, "sum") if world > 1 else weight
            loss = loss_sum * (world / total)  # DDP averages gradients over processes
            accelerator.backward(loss)
            return [loss.detach()], metrics
        with contextlib.ExitStack() as stack:
            for name in names:  # processes exchange gradients once
                exchange_gradients(modules[name], part == parts[-1])
                if part != parts[-1]:
                    stack.enter_context(accelerator.no_sync(modules[name]))
            accelerator.backward(loss_sum * world)
        losses.append(loss_sum.detach())
        own_weight = own_weight + weight
    total = accelerator.reduce(own_weight, "sum") if world > 1 else own_weight
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= total
    return [loss * (world / total) for loss in losses], metrics


@contextlib.contextmanager
def _explained(step: int, settings: Optimization) -> Iterator[None]:
    """A batch that finds no memory, in words."""
    try:
        yield
    except (
        RuntimeError
    ) as error:  # torch.OutOfMemoryError is one; on a CPU there is no class for it
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(
            error
        ):
            raise
        cures = ["lower tokens_per_batch, or raise accumulation", "set checkpointing: true"]
        cures += (
            ["set sharding: full and take more processes"] if settings.sharding == "none" else []
        )
        raise UserError(
            f"the batch of step {step + 1} does not fit into memory; its last checkpoint is kept: {'; '.join(cures)}"
        ) from error


def _not_finite(
    accelerator: Accelerator,
    phase: str,
    step: int,
    work: Path,
    loss: torch.Tensor,
    norm: torch.Tensor,
    where: list[str],
) -> str:
    """What all processes say of a loss or gradient that is no number; `where`: the rows of the parts of this one whose loss is none."""
    everywhere = [
        text for text in (gather_object(where) if accelerator.num_processes > 1 else where) if text
    ]
    value = (
        f"loss of {phase} became {loss.item()}"
        if not loss.isfinite() or everywhere
        else f"gradient of {phase} became {norm.item()}"
    )
    rows = f" ({'; '.join(everywhere)})" if everywhere else ""
    return f"the {value} at step {step + 1} in {work}{rows}; the last good checkpoint is kept. Lower the learning rate or look at that batch"


def _seed(seed: int, step: int, part: int) -> None:
    """Randomness begins anew with every step, for each part of its batch."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + part)


def _total(accelerator: Accelerator, own: int | bool) -> int:
    """The sum over all processes; of wishes: how many have it, so that all act in the same step."""
    if accelerator.num_processes == 1:
        return int(own)
    return int(accelerator.reduce(torch.tensor(int(own), device=accelerator.device), "sum"))


class StopRequest:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a polite request that the loop answers after the current step."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.requested = True
