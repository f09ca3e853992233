"""The one training loop: batches and a step function in, trained modules and a metrics log out.

HuBERT, the vocoder's GAN, the text-to-unit model and all stages of the language model run through `train`.  It is exact by
construction: a batch is a pure function of the step number, randomness is re-seeded at every step, the schedule counts steps and
not seconds.  So a run that is killed and started again ends in the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.training.checkpoints import find_checkpoint, save_checkpoint
from speechgpt_lib.training.sharding import Whole, copy_back, exchange_gradients, load_optimizer, shard, whole

MATRICES = " matrices"  # what follows a phase's name in the name of the optimizer of its matrices


def make_optimizers(modules: list[torch.nn.Module], settings: Optimization) -> dict[str, torch.optim.Optimizer]:
    """AdamW for everything; or, with `matrix_learning_rate`, Muon for the matrices between layers and AdamW for the rest.

    Muon (Jordan 2024; its rate scaled as in Liu et al. 2025, arXiv 2502.16982) makes the update of a matrix orthogonal, so that
    directions of small gradients are learned as fast as those of large ones.  All matrices move, and they grow, so it wants far more
    weight decay than AdamW.  Returns optimizers by what follows the phase's name.
    """
    tables = {id(p) for module in modules for m in module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    matrices, others = [], []
    for name, p in (named for module in modules for named in module.named_parameters()):
        between_layers = p.ndim == 2 and id(p) not in tables and "lm_head" not in name
        if p.requires_grad:
            (matrices if settings.matrix_learning_rate and between_layers else others).append(p)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if others:
        group = {"params": others, "scale": 1.0}
        optimizers[""] = torch.optim.AdamW(
            [group], settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
    if matrices:
        group = {"params": matrices, "scale": settings.matrix_learning_rate / settings.learning_rate}
        optimizers[MATRICES] = torch.optim.Muon(
            [group], settings.learning_rate, settings.matrix_weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
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
) -> dict[str, Any]:
    """Train `modules` in place and return a summary {steps, seconds, loss, tokens_per_second, …}.

    Args:
        modules: what is trained, by name.
        step_function: called as `step_function(phase, modules, batch, step)`; returns (sum of losses, their weight, metrics) or
            None to skip the phase.  The loss minimised is the sum over all processes divided by the weight over all processes,
            so that two processes with unequal batches equal one process with both.
        batch_at: called as `batch_at(step, rank, world_size)`, must depend on nothing else.
        work: folder for `metrics.jsonl` and `checkpoints/`; training resumes from what it finds there.
        world_size: the number of processes this training must have; any other is refused.
        phases: optimizer name → names of the modules it drives, run in order within a step (a GAN has two).
        learning_rates: optimizer name → factor on the learning rate.
        visits: step → what the first process does when so many steps are made and saved, such as listening to the modules.  After a
            kill a visit may be made again.

    Raises:
        UserError: wrong world size, or a loss that is not finite (the last good checkpoint is kept).
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
    # 2. Optimizers --------------------------------------------------------------------------------------------------------------
    phases = phases or {"model": list(modules)}
    bare = dict(modules)
    sharded = settings.sharding == "full" and world_size > 1
    if sharded and (len(phases) > 1 or visits):
        raise UserError(f"a training with {len(phases)} optimizers or visits can't be sharded: set sharding: none")
    checkpoints = work / "checkpoints"
    # 3. Resume: weights before they are shared out, moments after -----------------------------------------------------------------
    checkpoint = find_checkpoint(checkpoints)
    first = checkpoint.load_modules(bare) if checkpoint else 0
    if sharded:
        modules = {name: shard(module, accelerator.device, settings.precision) for name, module in bare.items()}
    optimizers = {
        f"{phase}{suffix}": optimizer
        for phase, names in phases.items()
        for suffix, optimizer in make_optimizers([modules[name] for name in names], settings).items()
    }
    if checkpoint:
        checkpoint.load_optimizers(optimizers, load_optimizer)
    log = MetricsLog(work / "metrics.jsonl", first, accelerator.is_main_process)
    if not sharded:
        modules = {name: accelerator.prepare(module) for name, module in modules.items()}
        optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}
    visits = dict(visits or {}) if accelerator.is_main_process else {}
    if first in visits:  # saved, but perhaps killed while it was there
        visits[first]()
    started = saved = time.perf_counter()
    summary: dict[str, Any] = {}
    # 4. Steps -------------------------------------------------------------------------------------------------------------------
    with StopRequest() as stop:
        for step in range(first, settings.steps):
            # A process that accumulates stands for as many processes, one after the other.
            parts = [accelerator.process_index * settings.accumulation + part for part in range(settings.accumulation)]
            batches = []
            for part in parts:
                _seed(seed, step, part)
                batches.append(batch_at(step, part, world_size * settings.accumulation))
            record: dict[str, Any] = {}
            for phase, names in phases.items():
                rate = learning_rate_at(step, settings) * (learning_rates or {}).get(phase, 1.0)
                own = [optimizer for name, optimizer in optimizers.items() if name in (phase, phase + MATRICES)]
                for optimizer in own:
                    optimizer.zero_grad()
                parameters = [p for name in names for p in modules[name].parameters() if p.requires_grad]
                found = _backward(accelerator, phase, names, modules, step_function, batches, parts, step, seed, parameters)
                if found is None:
                    continue
                loss, metrics = found
                if not torch.isfinite(loss):
                    raise UserError(
                        f"the loss of {phase} became {loss.item()} at step {step + 1} in {work}; the last good checkpoint is kept. "
                        "Lower the learning rate or look at that batch"
                    )
                norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
                for optimizer in own:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["scale"]
                    optimizer.step()
                prefix = "" if len(phases) == 1 else f"{phase}_"
                record |= {f"{prefix}loss": loss, f"{prefix}grad_norm": norm, "lr": rate, **metrics}
            # 5. Log and save ------------------------------------------------------------------------------------------------------
            last = step + 1 == settings.steps
            if last or (step + 1) % settings.log_every == 0:
                seconds = time.perf_counter() - started
                left = seconds / (step + 1 - first) * (settings.steps - step - 1)
                summary = log.write({"step": step + 1, **_pooled(accelerator, record), "seconds": seconds, "seconds_left": left})
                if on_log:
                    on_log(summary)
            if settings.most_hours and time.perf_counter() - started > 3600 * settings.most_hours:
                stop.requested = True
            must_stop = _agree(accelerator, stop.requested or time.perf_counter() - saved > settings.save_every_s)
            if (must_stop or step + 1 in visits) and not last:
                kept = {name: Whole(module) for name, module in modules.items()} if sharded else bare
                moments = {name: Whole(o) if sharded else o.optimizer for name, o in optimizers.items()}
                if accelerator.is_main_process:
                    save_checkpoint(checkpoints, step + 1, kept, moments)
            if step + 1 in visits:
                visits[step + 1]()
            if must_stop and not last:
                saved = time.perf_counter()
                if _agree(accelerator, stop.requested):
                    raise KeyboardInterrupt(f"stopped after step {step + 1}; run it again to resume")
    for name in bare if sharded else ():
        copy_back(modules[name], bare[name])
    for name in ("step", "seconds_left"):
        summary.pop(name, None)
    return {"steps": settings.steps, "resumed_from": first, **summary}


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
) -> tuple[torch.Tensor, dict] | None:
    """Gradients of the mean over all processes and parts; returns that mean's share of this process, and the metrics of the last part.

    The mean is over the weight of all of them, which is known at the end only.  So the loss of several parts goes back as a sum, and the
    gradients are divided; that of a single part is divided before.
    """
    world, loss, own_weight, metrics = accelerator.num_processes, 0.0, 0.0, {}
    for part, batch in zip(parts, batches, strict=True):
        if len(parts) > 1:
            _seed(seed, step, part)
        result = step_function(phase, modules, batch, step)
        if result is None:
            return None
        loss_sum, weight, metrics = result
        weight = torch.as_tensor(weight, dtype=torch.float32, device=accelerator.device)
        if len(parts) == 1:
            total = accelerator.reduce(weight, "sum") if world > 1 else weight
            loss = loss_sum * (world / total)  # DDP averages gradients over processes
            if torch.isfinite(loss):
                accelerator.backward(loss)
            return loss, metrics
        with contextlib.ExitStack() as stack:
            for name in names:  # processes exchange gradients once
                exchange_gradients(modules[name], part == parts[-1])
                if part != parts[-1]:
                    stack.enter_context(accelerator.no_sync(modules[name]))
            accelerator.backward(loss_sum * world)
        loss, own_weight = loss + loss_sum.detach(), own_weight + weight
    total = accelerator.reduce(own_weight, "sum") if world > 1 else own_weight
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= total
    return loss * (world / total), metrics


def _seed(seed: int, step: int, part: int) -> None:
    """Randomness begins anew with every step, for each part of its batch."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + part)


def _pooled(accelerator: Accelerator, record: dict[str, Any]) -> dict[str, Any]:
    """This process's figures → those of all: counts (int) are added up, everything else is averaged."""
    if accelerator.num_processes == 1:
        return record
    own = torch.tensor([torch.as_tensor(value).item() for value in record.values()], dtype=torch.float64, device=accelerator.device)
    sums = accelerator.reduce(own, "sum").tolist()
    pairs = zip(record.items(), sums, strict=True)
    return {name: round(total) if isinstance(value, int) else total / accelerator.num_processes for (name, value), total in pairs}


def _agree(accelerator: Accelerator, wish: bool) -> bool:
    """Whether any process wishes it, so that all of them act in the same step."""
    if accelerator.num_processes == 1:
        return wish
    flag = torch.tensor(float(wish), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


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


class MetricsLog:
    """One JSON object a line; on resume, lines after the checkpoint are dropped so that no step is logged twice.

    Only the first process writes; the others' log stays empty, but is there for whoever moves it.
    """

    def __init__(self, path: Path, first: int, active: bool):
        self.path, self.active = path, active
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if active:
            kept = [row for row in read_metrics(path) if row["step"] <= first]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, record: dict[str, Any]) -> dict[str, float]:
        row = {name: _number(value) for name, value in record.items()}
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics log; a last line cut off by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _number(value: Any) -> float:
    value = value.item() if isinstance(value, torch.Tensor) else value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
