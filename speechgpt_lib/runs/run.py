"""The run directory: every step's results in a folder of its own, redone only when what it depends on has changed.

    runs/lab/recipe.yaml                      the recipe as validated, and the seed
    runs/lab/01_unit_extraction/hubert/       one step's results …
    runs/lab/01_unit_extraction/hubert/facts.json   … and how they came about (written last)
    runs/lab/01_unit_extraction/hubert.partial/     a step that is under way or was interrupted

A step's *key* is a hash of its settings, its seed, its version and the keys of its inputs.  An unchanged key means the results are
reused; a changed one means the step is made anew; a `.partial` folder with the right key is resumed.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from speechgpt_lib import __version__
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import Recipe, dump_recipe, load_recipe
from speechgpt_lib.runs.artefacts import hash_folder, hash_json, read_json, replace, write_failure, write_json, write_text
from speechgpt_lib.runs.memory import Monitor, return_free_memory

MADE_BY = {  # which notebook makes which folder: what to tell a reader whose input is missing
    "01_unit_extraction": "01_unit_extraction",
    "02_unit_vocoder": "02_unit_vocoder",
    "03_cross_modal_instructions": "03_cross_modal_instructions",
    "04_chain_of_modality_instructions": "04_chain_of_modality_instructions",
    "05_vocabulary_expansion": "05_vocabulary_expansion",
    "06_stage1_modality_adaptation": "06_stage1_modality_adaptation",
    "07_stage2_cross_modal_finetuning": "07_stage2_cross_modal_finetuning",
    "08_stage3_chain_of_modality_lora": "08_stage3_chain_of_modality_lora",
    "09_talk_to_speechgpt": "09_talk_to_speechgpt",
}
_SCRAP = ("key", "progress.json", "checkpoints", "tensorboard", "facts.json")  # what stands beside a step's results
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "praat-parselmouth")


@dataclass(frozen=True)
class Step:
    """A finished step: where its results lie and what is known of them."""

    name: str
    path: Path
    facts: dict = field(repr=False)
    reused: bool = False

    @property
    def key(self) -> str:
        return self.facts["key"]

    @property
    def metrics(self) -> dict:
        return self.facts["metrics"]


@dataclass(frozen=True)
class Run:
    """A run directory with its recipe and seed; `say` is told what is reused, resumed or made."""

    path: Path
    recipe: Recipe
    say: Callable[[str], None] = field(default=print, repr=False)
    rank: int = 0

    @classmethod
    def create(cls, path: Path | str, recipe: Recipe, say: Callable[[str], None] = print) -> Run:
        """Open `path` for `recipe`, which becomes the folder's recipe; results of another recipe there are redone as needed."""
        path = Path(path).expanduser()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot use {path} as a run directory ({error.strerror}); choose another --run-dir") from error
        text = dump_recipe(recipe)
        saved = path / "recipe.yaml"
        if not saved.exists() or saved.read_text(encoding="utf-8") != text:
            write_text(saved, text)
        return cls(path, recipe, say)

    @classmethod
    def open(cls, path: Path | str, say: Callable[[str], None] = print) -> Run:
        """Open an existing run directory with the recipe saved there."""
        path = Path(path).expanduser()
        if not (path / "recipe.yaml").is_file():
            found = "a folder without recipe.yaml" if path.is_dir() else "no such folder"
            raise UserError(f"no run at {path} ({found}): make one with `make tutorial` or `speechgpt run`, or name it with --run")
        return cls(path, load_recipe(path / "recipe.yaml"), say)

    def as_worker(self, rank: int, world_size: int) -> Run:
        """This run as seen by one of several training processes; only rank 0 keeps the books."""
        return replace_fields(self, recipe=self.recipe.model_copy(update={"processes": world_size}), rank=rank)

    def fork(self, path: Path | str, recipe: Recipe, steps: dict[str, str]) -> Run:
        """A new run directory for experiments on a part: each step of `steps` (name there → name here) is a link to one of this run."""
        forked = Run.create(path, recipe, self.say)
        for there, here in steps.items():
            target = forked.path / there
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(self.require(here).path.resolve(), target_is_directory=True)
        return forked

    def find(self, name: str) -> Step | None:
        """The finished step `name` ("01_unit_extraction/hubert"), or None if it is not there or a file of it is gone or cut short."""
        folder = self.path / name
        if not (folder / "facts.json").is_file():
            return None
        try:
            facts = read_json(folder / "facts.json")
            outputs = facts["outputs"].items()
        except (UserError, KeyError, TypeError):
            self.say(f"damaged  {name}: facts.json is not what a finished step writes")
            return None
        for file, known in outputs:
            if not (folder / file).is_file() or (folder / file).stat().st_size != known["bytes"]:
                self.say(f"damaged  {name}: {file} is missing or has another size than when it was made")
                return None
        return Step(name, folder, facts, reused=True)

    def require(self, name: str) -> Step:
        """The finished step `name`, or an error that names the notebook and the command that make it."""
        step = self.find(name)
        if step is None:
            notebook = MADE_BY.get(name.split("/")[0], name)
            number = notebook[:2]
            raise UserError(
                f"{self.path / name} is missing: run notebook {notebook}.ipynb first, or "
                f"`speechgpt run --recipe {self.recipe.name} --run-dir {self.path} --only {number}`"
            )
        return step

    def step(
        self,
        name: str,
        make: Callable[[Path], dict[str, Any] | None],
        *,
        settings: Any,
        inputs: dict[str, Step] | None = None,
        version: int = 1,
        force: bool = False,
    ) -> Step:
        """Return step `name`, made by `make(work)` unless results with the same key are there already.

        `make` writes its results into the folder `work` and returns metrics (JSON values).  It may leave checkpoints in
        `work/checkpoints`, which are dropped on success and found again after an interruption.
        """
        inputs = inputs or {}
        settings = settings.model_dump(mode="json") if hasattr(settings, "model_dump") else settings
        key = hash_json(
            {
                "step": name,
                "settings": settings,
                "seed": self.recipe.seed,
                "version": version,
                "inputs": {role: step.key for role, step in inputs.items()},
            }
        )
        if self.rank > 0:
            return self._follow(name, make, key, force)
        with self._lock(name):
            found = self.find(name)
            if found and found.key == key and not force:
                self.say(f"reused   {name} (made {found.facts['finished']}, {found.facts['wall_seconds']:.0f} s)")
                return found
            return self._make(name, make, key, settings, inputs, bool(found), force)

    def _make(self, name: str, make: Callable, key: str, settings: Any, inputs: dict[str, Step], stale: bool, force: bool) -> Step:
        target = self.path / name
        work = target.with_name(target.name + ".partial")
        resumed = (work / "key").is_file() and (work / "key").read_text() == key and not force
        if not resumed:
            shutil.rmtree(work, ignore_errors=True)
        reason = "resumed " if resumed else "remade  " if stale else "making  "
        why = " (forced)" if force else " (its settings, inputs or version changed)" if stale and not resumed else ""
        self.say(f"{reason} {name}{why}")
        try:
            work.mkdir(parents=True, exist_ok=True)
            (work / "key").write_text(key)
            return_free_memory()
            with Monitor(work / "progress.json") as monitor:
                metrics = make(work) or {}
        except Exception as error:
            if cause := write_failure(error):
                raise UserError(f"{name} stopped: {cause}; free the cause and run it again, it resumes") from error
            raise
        facts = {
            "step": name,
            "key": key,
            "settings": settings,
            "seed": self.recipe.seed,
            "inputs": {role: {"step": step.name, "key": step.key} for role, step in inputs.items()},
            "outputs": hash_folder(work, skip=_SCRAP),
            "metrics": metrics,
            "wall_seconds": round(monitor.seconds, 2),
            "peak_memory_mb": round(monitor.peak_memory_mb, 1),
            "resumed": resumed,
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "device": self.recipe.device,
            },
            "versions": {"speechgpt": __version__, **{p: _version(p) for p in _PACKAGES}},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(work / "facts.json", facts)
        for scrap in ("key", "progress.json"):  # only now: up to here the step could still be resumed
            (work / scrap).unlink(missing_ok=True)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        replace(work, target)
        self.say(f"made     {name} in {facts['wall_seconds']:.0f} s, peak {facts['peak_memory_mb']:.0f} MB")
        return Step(name, target, facts)

    def _follow(self, name: str, make: Callable, key: str, force: bool) -> Step:
        """Take part in what rank 0 makes: the same work from the same checkpoints, its results thrown away."""
        target, partial = self.path / name, self.path / f"{name}.partial"
        while not _has_text(partial / "key", key):
            found = None if force else self.find(name)
            if found and found.key == key:
                return found
            time.sleep(0.05)
        scratch = target.with_name(f"{target.name}.rank{self.rank}")
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        try:
            scratch.mkdir()
            # Names of its own for the same files: rank 0 moves what it has there.  It can't have begun, since the first update waits for all.
            if (partial / "checkpoints").is_dir():
                shutil.copytree(partial / "checkpoints", scratch / "checkpoints", copy_function=_link)
            metrics = make(scratch) or {}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Step(name, target, {"key": key, "metrics": metrics})

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process at a time makes a step; the lock ends with the process, so a killed one leaves nothing behind."""
        path = self.path / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(path, "w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"{name} is being made in {self.path} by another process; wait for it or use another --run-dir"
                    ) from None
                if not _is_file_at(file, path):
                    continue  # its holder removed it after we opened it: what we locked is no longer what others find
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return

    def steps(self) -> list[Step]:
        """Every finished step, in the order of the pipeline's folders and, within one, of finishing."""
        found = [self.find(p.parent.relative_to(self.path).as_posix()) for p in self.path.glob("[0-9][0-9]_*/*/facts.json")]
        found = [step for step in found if step and not step.path.name.endswith(".partial")]
        return sorted(found, key=lambda step: (step.name.split("/")[0], step.facts["finished"], step.name))


def _is_file_at(file: IO, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _has_text(path: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        return path.read_text() == text
    return False


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _link(source: str, target: str) -> None:
    """A second name for a file, where the file system knows such; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
