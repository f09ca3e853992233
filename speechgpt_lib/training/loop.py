"""The one training loop: batches and a loss in, trained modules and a metrics log out.

It is exact by construction: a batch is a pure function of the step number, the seed is set anew at
every step, the schedule counts steps and not seconds.  So a training that is killed and started
again ends in the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from speechgpt_lib.errors import UserError, out_of_memory, reading
from speechgpt_lib.recipes.schema import Optimization
from speechgpt_lib.runs.machine import keeping_memory
from speechgpt_lib.surroundings import clear_variables
from speechgpt_lib.training.checkpoints import find_checkpoint, save_checkpoint
from speechgpt_lib.training.devices import compile_layers, resolve_compile, resolve_precision
from speechgpt_lib.training.log import MetricsLog
from speechgpt_lib.training.optimizers import MATRICES, learning_rate_at, make_optimizers
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.training.parts import load_in_parts, read_rows, save_in_parts
from speechgpt_lib.training.sharding import copy_back, is_sharded, load_optimizer, shard, whole


@dataclass(frozen=True)
class Task:
    """What is trained on what, and how its loss is computed.

    - `modules`: what is trained, by name; one that is sharded already stays so.
    - `step_function(phase, modules, batch, step)`: (sum of losses, their weight, metrics), or None
      to skip the phase.  The loss minimised is the sum over all processes divided by the weight
      over all processes, so two processes with unequal batches equal one process with both.  A
      metric "tokens" (int) is added up over steps.
    - `batch_at(step, rank, world_size)`: a batch, which depends on nothing else.
    - `phases`: optimizer → names of the modules it drives; a step runs them in order (a GAN has 2).
    - `learning_rates`: optimizer → factor on the learning rate.
    - `visits`: step → what the first process does when so many steps are made and saved, such as
      listening to the modules.  After a kill a visit may be made again.
    - `flops_per_token`: forward and backward, for `mfu` in the log.
    - `name_rows`: called as `batch_at` is; says which rows are in that batch, for the error about a
      loss that is not finite.
    """

    modules: dict[str, torch.nn.Module]
    step_function: Callable[..., tuple[torch.Tensor, torch.Tensor | float, dict[str, Any]] | None]
    batch_at: Callable[[int, int, int], Any]
    phases: dict[str, list[str]] | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    visits: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    flops_per_token: float = 0.0
    name_rows: Callable[[int, int, int], str] | None = None


def train(task: Task, settings: Optimization, work: Path, options: TrainingOptions) -> dict:
    """Train the modules of `task` in place; returns {steps, resumed_from, seconds, loss, …}.

    `work` gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`, where training resumes.  Raises
    UserError for a wrong number of processes, no memory for the batch or a loss that is not finite
    (the last good checkpoint is kept); KeyboardInterrupt when a signal or the clock stopped it.
    """
    training = Training(task, settings, work, options)
    with keeping_memory(), stop_requests() as asked:
        for step in range(training.first, settings.steps):
            record = training.step(step)
            last = training.is_last(step + 1)
            training.write_log(step + 1, record, last)
            training.save_or_stop(step + 1, last, asked)
            if last:
                break
    return training.finish()


class Training:
    """A training on its way; `train` calls its parts in the order in which they stand here."""

    # --- 1. Set-up: devices, resume, optimizers --------------------------------------------------
    def __init__(self, task: Task, settings: Optimization, work: Path, options: TrainingOptions):
        precision = resolve_precision(settings.precision, options.device)
        chosen = {"precision": precision, "compile": resolve_compile(settings.compile)}
        self.settings = settings.model_copy(update=chosen)
        self.task, self.work, self.options = task, work, options
        self.modules, self.phases = dict(task.modules), task.phases or {"model": list(task.modules)}
        self.world, self.own_tokens, self.summary = options.world_size, 0, {}
        self.sharded = settings.sharding == "full" and self.world > 1
        # An earlier training may have had another precision, or have been on another device.
        AcceleratorState._reset_state(reset_partial_state=self.world == 1)
        clear_variables()  # accelerate would take them before what is said here
        partly = task.phases is not None  # a phase leaves some parameters without gradient
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=partly)]
        cpu = options.device == "cpu"
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers)
        if (found := self.accelerator.num_processes) != self.world:
            raise UserError(
                f"this training was meant for {self.world} process(es) but runs in {found}: start "
                f"it with `speechgpt train STEP --run RUN --processes {self.world}` "
                "(`accelerate launch --cpu` would let each process train alone)"
            )
        if self.sharded and (len(self.phases) > 1 or task.visits):
            what = f"a training with {len(self.phases)} optimizers or visits"
            raise UserError(f"{what} can't be sharded: set sharding: none")
        # A process that accumulates stands for as many processes, one after the other.
        count, rank = settings.accumulation, self.accelerator.process_index
        self.parts, self.all_parts = range(rank * count, (rank + 1) * count), self.world * count
        self._resume()
        before, flops = (self.first, self.tokens_before), task.flops_per_token
        path = work / "metrics.jsonl"
        self.log = MetricsLog(path, self.accelerator, *before, self.settings, flops)
        self.visits = task.visits if self.accelerator.is_main_process else {}
        if self.first in self.visits:  # saved, but perhaps killed while it was there
            self.visits[self.first]()
        self.started = self.saved = time.perf_counter()

    def _resume(self) -> None:
        """Modules and optimizers as the newest checkpoint has them, or new ones."""
        share = slice(self.accelerator.process_index, None, self.world)
        options = {"share": share, "agree": self._all} if self.sharded else {}
        checkpoint = find_checkpoint(self.work / "checkpoints", **options)
        self.first, self.tokens_before = 0, 0
        if checkpoint:
            self.first, self.tokens_before = checkpoint.step, checkpoint.tokens
        shared = {n: m for n, m in self.modules.items() if is_sharded(m)}
        self.whole = {n: m for n, m in self.modules.items() if n not in shared}
        if checkpoint and not checkpoint.in_parts:
            checkpoint.load_modules(self.whole)  # before they are shared out
            for module in shared.values():
                read_rows(module, checkpoint.path)
        if self.sharded:
            place, precision = self.accelerator.device, self.settings.precision
            self.modules |= {n: shard(m, place, precision) for n, m in self.whole.items()}
        if self.settings.compile:
            compile_layers(self.modules.values())
        self.optimizers = {}
        for phase, names in self.phases.items():
            own = make_optimizers([self.modules[name] for name in names], self.settings)
            self.optimizers |= {phase + suffix: optimizer for suffix, optimizer in own.items()}
        with reading(self.work / "checkpoints", "delete them, the step begins anew"):
            if checkpoint and checkpoint.in_parts:
                load_in_parts(checkpoint.path, self.modules, self.optimizers)
            elif checkpoint:
                for name, moments in checkpoint.load_moments().items():
                    load_optimizer(self.optimizers[name], moments)
        if not self.sharded:
            prepare = self.accelerator.prepare
            self.modules = {name: prepare(module) for name, module in self.modules.items()}
            self.optimizers = {name: prepare(o) for name, o in self.optimizers.items()}

    # --- 2. A step: batches, loss, gradients, clipping, update -----------------------------------
    def step(self, step: int) -> dict[str, Any]:
        """One update of every module; returns what is to be logged."""
        batches, record = [], {}
        for part in self.parts:
            self._seed(step, part)
            batches.append(self.task.batch_at(step, part, self.all_parts))
        for phase in self.phases:
            record |= self._update(phase, batches, step)
        return record

    def _seed(self, step: int, part: int) -> None:
        """The seed of a step, for each part of its batch: randomness begins anew with it."""
        torch.manual_seed((self.options.seed * 1_000_003 + step) * 4099 + part)

    def _update(self, phase: str, batches: list, step: int) -> dict[str, Any]:
        """Gradients of one phase, clipped, and the optimizer's step at the scheduled rate."""
        rate = learning_rate_at(step, self.settings) * self.task.learning_rates.get(phase, 1.0)
        own = [o for name, o in self.optimizers.items() if name in (phase, phase + MATRICES)]
        for optimizer in own:
            optimizer.zero_grad()
        with memory_explained(step, self.settings):
            found = self._gradients(phase, batches, step)
        if found is None:
            return {}
        losses, metrics = found
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters(phase), self.settings.clip))
        # Processes must agree: the norm is the same in all of them, the losses are not.
        if not torch.isfinite(norm if self.world > 1 else norm + sum(losses)):
            raise self._not_finite(phase, step, losses, norm)
        for optimizer in own:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
        self.own_tokens += metrics.pop("tokens", 0)
        prefix = "" if len(self.phases) == 1 else f"{phase}_"
        figures = {f"{prefix}loss": sum(losses), f"{prefix}grad_norm": norm, "lr": rate}
        return figures | metrics

    def _gradients(self, phase: str, batches: list, step: int) -> tuple[list, dict] | None:
        """Gradients of the mean loss over all processes and parts.

        Returns what each part here adds to that mean, and the metrics.  The mean is over the weight
        of all parts, known at the end only: so the loss of several parts goes back as a sum and the
        gradients are divided; the loss of a single part is divided before.
        """
        alone = len(self.parts) == 1
        losses, weight, metrics = [], 0.0, {}
        for part, batch in zip(self.parts, batches, strict=True):
            if not alone:
                self._seed(step, part)
            result = self.task.step_function(phase, self.modules, batch, step)
            if result is None:
                return None
            loss, own_weight, found = result
            counts = {name: value for name, value in found.items() if isinstance(value, int)}
            metrics = found | {name: n + metrics.get(name, 0) for name, n in counts.items()}
            own_weight = torch.as_tensor(own_weight, dtype=torch.float32)
            weight = weight + own_weight.to(self.accelerator.device)
            if alone:
                # Times the number of processes, since DDP averages gradients over them.
                loss = loss * (self.world / self._sum(weight))
                self.accelerator.backward(loss)
                return [loss.detach()], metrics
            self._backward(phase, loss * self.world, exchange=part == self.parts[-1])
            losses.append(loss.detach())
        total = self._sum(weight)
        for parameter in self._parameters(phase):
            if parameter.grad is not None:
                parameter.grad /= total
        return [loss * (self.world / total) for loss in losses], metrics

    def _backward(self, phase: str, loss: torch.Tensor, exchange: bool) -> None:
        """Adds gradients to those of earlier parts; processes `exchange` them at the last only."""
        with contextlib.ExitStack() as stack:
            for name in self.phases[phase]:
                if is_sharded(module := self.modules[name]):
                    module.set_requires_gradient_sync(exchange)
                elif not exchange:
                    stack.enter_context(self.accelerator.no_sync(module))
            self.accelerator.backward(loss)

    def _parameters(self, phase: str) -> list[torch.nn.Parameter]:
        modules = [self.modules[name] for name in self.phases[phase]]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def _sum(self, own: torch.Tensor | int) -> torch.Tensor | int:
        """The sum of a figure of this process over all processes."""
        if self.world == 1:
            return own
        return self.accelerator.reduce(torch.as_tensor(own, device=self.accelerator.device), "sum")

    def _all(self, own: bool) -> bool:
        """Whether something is so in all processes."""
        return self._sum(int(own)) == self.world

    def _not_finite(self, phase: str, step: int, losses: list, norm: torch.Tensor) -> UserError:
        """The error for a loss or gradient that is not finite, with the rows of all processes."""
        broken = [p for p, loss in zip(self.parts, losses, strict=True) if not loss.isfinite()]
        name_rows = self.task.name_rows or (lambda *where: "")
        rows = [name_rows(step, part, self.all_parts) for part in broken]
        rows = [row for row in (gather_object(rows) if self.world > 1 else rows) if row]
        value = f"gradient of {phase} became {norm.item()}"
        if rows or not sum(losses).isfinite():
            value = f"loss of {phase} became {sum(losses).item()}"
        named = f" ({'; '.join(rows)})" if rows else ""
        cure = "the last good checkpoint is kept. Lower the learning rate or look at that batch"
        return UserError(f"the {value} at step {step + 1} in {self.work}{named}; {cure}")

    # --- 3. Log ----------------------------------------------------------------------------------
    def is_last(self, done: int) -> bool:
        """Whether the training ends after `done` steps: all are made, or enough tokens are read."""
        most = self.settings.most_tokens
        return done == self.settings.steps or bool(most and self._tokens() >= most)

    def _tokens(self) -> int:
        """Tokens read so far by all processes, those before a resume included."""
        return self.tokens_before + int(self._sum(self.own_tokens))

    def write_log(self, done: int, record: dict[str, Any], last: bool) -> None:
        """A line of `metrics.jsonl`, every `log_every` steps and at the end."""
        if last or done % self.settings.log_every == 0:
            self.summary = self.log.write(done, record, self._tokens())
            if self.options.on_log:
                self.options.on_log(self.summary)

    # --- 4. Save and stop ------------------------------------------------------------------------
    def save_or_stop(self, done: int, last: bool, asked: list) -> None:
        """Save when it is time, pay a visit that is due, leave when a signal or the clock says so.

        Raises KeyboardInterrupt when the training stops before its end.
        """
        now, hours = time.perf_counter(), self.settings.most_hours
        if hours and now - self.started > 3600 * hours:
            asked.append("the clock")
        # Wishes are counted, so that all processes act in the same step.
        late = now - self.saved > self.settings.save_every_s
        due = self._sum(int(late or bool(asked))) > 0
        if (due or done in self.visits) and not last:
            self._save(done, together=due)
        if done in self.visits:
            self.visits[done]()
        if due and not last:
            self.saved = time.perf_counter()
            # Nobody leaves before all is saved: a launcher ends the others when the first has gone.
            if self._sum(len(asked)) > 0:
                raise KeyboardInterrupt(f"stopped after step {done}; run it again to resume")

    def _save(self, done: int, together: bool) -> None:
        """Write a checkpoint; `together`: all processes are here, not the first alone."""
        tokens = self._tokens() if together else self.tokens_before + self.own_tokens
        folder, more = self.work / "checkpoints", (self.settings.keep, tokens)
        if self.sharded:
            save_in_parts(folder, done, self.modules, self.optimizers, *more)
        elif self.accelerator.is_main_process:
            moments = {name: o.state_dict() for name, o in self.optimizers.items()}
            save_checkpoint(folder, done, self.task.modules, moments, *more)

    def finish(self) -> dict[str, Any]:
        """The trained weights back in the modules that were given; returns the summary."""
        if self.sharded:
            copy_back(self.modules, self.whole)
        if self.settings.compile:
            compile_layers(self.task.modules.values(), undo=True)
        steps, precision = self.summary.get("step", self.first), self.settings.precision
        kept = {n: v for n, v in self.summary.items() if n not in ("step", "seconds_left")}
        return {"steps": steps, "resumed_from": self.first, "precision": precision} | kept


@contextlib.contextmanager
def stop_requests() -> Iterator[list]:
    """A list that is empty until SIGTERM, SIGINT or SIGUSR1 come: the loop looks after its step."""
    came, before = [], {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def memory_explained(step: int, settings: Optimization) -> Iterator[None]:
    """Explains an out-of-memory error, which on a CPU has no class of its own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        cures = "lower tokens_per_batch, or raise accumulation; set checkpointing: true"
        if settings.sharding == "none":
            cures += "; set sharding: full and take more processes"
        what = f"the batch of step {step + 1} does not fit into memory; its last checkpoint is kept"
        raise UserError(f"{what}: {cures}") from error
