"""The run directory: every step's results in a folder, remade when what they depend on changed.

    01_unit_extraction/hubert/facts.json   how one step's results came about (written last)
    01_unit_extraction/hubert.partial/     a step that is under way or was interrupted

A step's *key* is a hash of its settings, its seed, its version and the keys of its inputs.  Results
with an unchanged key are reused, others made anew; a `.partial` folder with it is resumed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speechgpt_lib import __version__
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.recipes.loading import dump_recipe, load_recipe
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs import artefacts
from speechgpt_lib.runs.machine import Monitor, cpu_facts, return_free_memory
from speechgpt_lib.runs.names import folder_of, notebook_of

SCRAP = ("key", "progress.json", "checkpoints", "tensorboard", "facts.json")  # beside the results
# Of facts.json, what others ask for.
FACTS = dict.fromkeys(("step", "key", "finished"), str) | {"wall_seconds": int | float}
FACTS |= dict.fromkeys(("inputs", "outputs", "metrics"), dict)
PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "praat-parselmouth")


@dataclass(frozen=True)
class Step:
    """A finished step: its folder ("01_unit_extraction/hubert"), its path, what is known of it."""

    name: str
    path: Path
    facts: dict = field(repr=False)
    reused: bool = False

    @property
    def key(self) -> str:
        """The hash of everything the step depends on."""
        return self.facts["key"]

    @property
    def metrics(self) -> dict:
        """What the step measured of its own results."""
        return self.facts["metrics"]


@dataclass(frozen=True)
class Task:
    """A step to be made: the folder `target`, and what its `facts` shall say of it.

    `make(work)` writes results into the folder `work` and returns metrics (JSON values).  In
    `work/checkpoints` an interrupted step finds again what it left; a finished one drops them.
    """

    target: Path
    facts: dict
    make: Callable[[Path], dict[str, Any] | None]
    force: bool

    @property
    def work(self) -> Path:
        """Where results lie until the step is finished."""
        return self.target.with_name(f"{self.target.name}.partial")

    def begin(self, force: bool = False) -> bool:
        """Make `work` ready; returns whether it holds what an earlier attempt has done."""
        if self.work.is_symlink():
            raise UserError(f"{self.work} is a link, which a step does not make: remove it")
        links = any(path.is_symlink() for path in self.work.rglob("*"))  # nor does it make these
        resumed = self.has_begun() and not force and not links
        if not resumed:
            shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)
        # Anew in any case: its time says when this attempt began.
        (self.work / "key").write_text(self.facts["key"])
        return resumed

    def has_begun(self) -> bool:
        """Whether an attempt with this key is under way, or was interrupted."""
        with contextlib.suppress(OSError, ValueError):
            return (self.work / "key").read_text() == self.facts["key"]
        return False


@dataclass(frozen=True)
class Run:
    """A run directory with its recipe and seed; `say` is told what is reused, resumed or made."""

    path: Path
    recipe: Recipe
    say: Callable[[str], None] = field(default=print, repr=False)
    rank: int = 0

    @classmethod
    def create(
        cls,
        path: Path | str,
        recipe: Recipe,
        say: Callable[[str], None] = print,
        force: bool = False,
        held: Path | None = None,
    ) -> Run:
        """Open `path` for `recipe`, which it keeps; what other settings made is remade as needed.

        A directory belongs to the name of its recipe and to its seed: UserError for another one,
        unless `force`, and for any change while somebody works there.  `held`: the caller's own
        lock.  A directory that has this very recipe is only read.
        """
        path = Path(path).expanduser()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot use {path} as a run directory ({error.strerror})"
            cure = "choose another --run-dir (`run_dir` in a notebook)"
            raise UserError(f"{what}; {cure}") from error
        run = cls(path, recipe, say)
        run.refuse_another(force)
        if not run.has_this_recipe():
            with artefacts.locked(path / ".lock", wait=True):
                run.refuse_another(force)
                if busy := [lock for lock in artefacts.held_locks(path) if lock != held]:
                    name = busy[0].relative_to(path).as_posix().removesuffix(".lock").strip("/")
                    what = f"{path} is in use by another process, which makes {name}"
                    raise UserError(f"{what}; wait for it or use another --run-dir")
                artefacts.write_text(path / "recipe.yaml", dump_recipe(recipe))
        return run

    def saved_recipe(self) -> str:
        """The text of the recipe that the directory keeps, or ""."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        return ""

    def has_this_recipe(self) -> bool:
        """Whether the directory keeps this run's recipe, to the letter."""
        return self.saved_recipe() == dump_recipe(self.recipe)

    def refuse_another(self, force: bool = False) -> None:
        """Raises UserError where the directory belongs to another recipe or seed, unless `force`;
        or to an earlier version."""
        refuse_older_layout(self.path)
        saved, own = self.saved_recipe(), dump_recipe(self.recipe)
        theirs, ours = (re.findall(r"(?m)^(?:name|seed): .*", text) for text in (saved, own))
        if saved and theirs != ours and not force:
            what = f"{self.path} belongs to {', '.join(theirs) or 'a recipe that is damaged'}"
            cure = "use another run directory (--run-dir, or `run_dir` in a notebook), or force"
            cure += " (--force, `force = True`), which remakes what is there"
            raise UserError(f"{what}; this is {', '.join(ours)}: {cure}")

    @classmethod
    def open(cls, path: Path | str, say: Callable[[str], None] = print) -> Run:
        """Open an existing run directory with the recipe saved there."""
        path = Path(path).expanduser()
        if not (path / "recipe.yaml").is_file():
            found = "a folder without recipe.yaml" if path.is_dir() else "no such folder"
            how = "make one with `make tutorial` or `speechgpt run`, or name it with --run"
            raise UserError(f"no run at {path} ({found}): {how}")
        refuse_older_layout(path)
        return cls(path, load_recipe(path / "recipe.yaml"), say)

    def as_worker(self, rank: int, world_size: int) -> Run:
        """This run as seen by one of several training processes; only rank 0 keeps the books."""
        recipe = self.recipe.model_copy(update={"processes": world_size})
        return replace(self, recipe=recipe, rank=rank)

    def fork(self, path: Path | str, recipe: Recipe, steps: dict[str, str]) -> Run:
        """A run directory for experiments, with links to these steps: name there → name here."""
        forked = Run.create(path, recipe, self.say)
        for there, here in steps.items():
            target = forked.path / folder_of(there)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(self.require(here).path.resolve(), target_is_directory=True)
        return forked

    def find(self, name: str) -> Step | None:
        """The finished step `name` ("hubert"), or None if it or a file of it is not there whole."""
        folder = folder_of(name)
        path, file = self.path / folder, "facts.json"
        if not (path / file).is_file():
            return None
        try:
            with reading(path / file):
                facts = artefacts.read_json(path / file)
                if any(not isinstance(facts[name], kind) for name, kind in FACTS.items()):
                    raise TypeError("a field is of another type than a finished step writes")
                for file, known in facts["outputs"].items():
                    found = (path / file).lstat()  # a link has another size
                    if found.st_size != known["bytes"] or not stat.S_ISREG(found.st_mode):
                        raise UserError("cut short, written to afterwards, or a link")
        except UserError:
            self.say(f"damaged  {folder}: {file} is missing or not as a finished step left it")
            return None
        return Step(folder, path, facts, reused=True)

    def require(self, name: str) -> Step:
        """The finished step `name`, or an error that names what makes it: notebook and command."""
        if step := self.find(name):
            return step
        notebook, missing = notebook_of(name), self.path / folder_of(name)
        where = f"--recipe {self.recipe.name} --run-dir {self.path}"
        how = f"`speechgpt run {where} --only {notebook[:2]}`"
        raise UserError(f"{missing} is missing: run notebook {notebook}.ipynb first, or {how}")

    def check_program(self, allow: bool = False) -> None:
        """Refuse a program that the recipe has run, unless this user has allowed it for this folder
        before, or does so now: a recipe, or a whole run, may come from a stranger."""
        program, mark = self.recipe.instructions.synthesiser, self.path / "allowed_program"
        wanted = artefacts.hash_json([program, str(self.path.resolve()), os.getuid()])
        known = mark.is_file() and mark.read_bytes() == wanted.encode()
        if program == "espeak" or (known and not allow):
            return
        if not allow:
            what = f"recipe {self.recipe.name} has a program run for every text: {program[:200]!r}"
            how = "if you trust it, say --allow-program (in Python: run.check_program(allow=True))"
            raise UserError(f"{what}; {how}")
        artefacts.write_text(mark, wanted)

    def key(self, name: str, settings: Any, inputs: Mapping[str, str], version: int = 1) -> str:
        """The key of a step with these settings (JSON values) and inputs (role → key)."""
        facts = {"step": folder_of(name), "settings": settings, "seed": self.recipe.seed}
        return artefacts.hash_json(facts | {"version": version, "inputs": dict(inputs)})

    def step(
        self, name: str, make, *, settings, inputs=None, version=1, force=False, part=False
    ) -> Step:
        """Step `name`, made by `make` (see `Task`) unless results with the same key are there.

        settings: JSON values; inputs: role → step.  With `part`, `make` does one of several parts,
        perhaps beside others that do theirs, and the step stays unfinished: a call without it finds
        all parts there, does what is missing and finishes.
        """
        folder, inputs = folder_of(name), inputs or {}
        key = self.key(name, settings, {role: step.key for role, step in inputs.items()}, version)
        facts = {"step": folder, "key": key, "settings": settings, "seed": self.recipe.seed}
        facts["inputs"] = {role: {"step": s.name, "key": s.key} for role, s in inputs.items()}
        task = Task(self.path / folder, facts, make, force)
        if self.rank > 0:
            return self._follow(task)
        if not force:  # look first: a finished run may lie where nobody can write
            found = replace(self, say=_nothing).find(name)
            if found and found.key == key:
                return self._reuse(found, part)
        busy = f"{folder} is being made in {self.path} by another process"
        busy += "; wait for it or use another --run-dir"
        with artefacts.locked(self.path / f"{folder}.lock", busy, wait=part):
            self.refuse_another()  # it may have been given to another since it was opened
            found = self.find(name)
            if found and found.key == key and not force:
                return self._reuse(found, part)
            if not part:
                return self._make(task, stale=bool(found))
            task.begin()
        return Step(folder, task.work, {"key": key, "metrics": make(task.work) or {}})

    def _reuse(self, found: Step, part: bool) -> Step:
        if not part:
            made = f"made {found.facts['finished']}, {found.facts['wall_seconds']:.0f} s"
            self.say(f"reused   {found.name} ({made})")
        return found

    def _make(self, task: Task, stale: bool) -> Step:
        work, folder = task.work, task.facts["step"]
        try:
            resumed = task.begin(task.force)
            reason = "resumed " if resumed else "remade  " if stale else "making  "
            changed = " (its settings, inputs or version changed)" if stale and not resumed else ""
            self.say(f"{reason} {folder}{' (forced)' if task.force else changed}")
            return_free_memory()
            with Monitor(work / "progress.json") as monitor:
                metrics = task.make(work) or {}
        except Exception as error:
            if cause := artefacts.write_failure(error):
                cure = "free the cause and run it again, it resumes"
                raise UserError(f"{folder} stopped: {cause}; {cure}") from error
            raise
        artefacts.remove_half_written(work)
        system = {"system": platform.platform(), "python": platform.python_version()}
        facts = task.facts | {
            "outputs": artefacts.hash_folder(work, lambda name: name not in SCRAP),
            "metrics": metrics,
            "wall_seconds": round(monitor.seconds, 2),
            "cpu_seconds": round(monitor.cpu_seconds, 2),
            "peak_memory_mb": round(monitor.peak_memory_mb, 1),
            "machine": system | {"device": self.recipe.device, "cpu": cpu_facts()},
            "versions": {"speechgpt": __version__, **{name: _version(name) for name in PACKAGES}},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "resumed": resumed,
        }
        artefacts.write_json(work / "facts.json", facts)
        # Only now: up to here the step could still be resumed.
        for scrap in ("key", "progress.json"):
            (work / scrap).unlink(missing_ok=True)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        artefacts.replace(work, task.target)
        cost = f"{facts['wall_seconds']:.0f} s, peak {facts['peak_memory_mb']:.0f} MB"
        self.say(f"made     {folder} in {cost}{_speed(metrics, facts['wall_seconds'])}")
        return Step(folder, task.target, facts)

    def _follow(self, task: Task) -> Step:
        """Takes part in what rank 0 makes: the same from the same checkpoints, thrown away."""
        folder, key = task.facts["step"], task.facts["key"]
        while not task.has_begun():
            found = None if task.force else self.find(folder)
            if found and found.key == key:
                return found
            time.sleep(0.05)
        scratch = task.target.with_name(f"{task.target.name}.rank{self.rank}")
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        try:
            scratch.mkdir()
            # Own names for the same files: rank 0 moves its own.  It has not begun, the first
            # update waits for all.
            places = task.work / "checkpoints", scratch / "checkpoints"
            if places[0].is_dir():
                try:
                    shutil.copytree(*places, copy_function=os.link)
                except OSError:  # a file system that knows no second names
                    shutil.copytree(*places, dirs_exist_ok=True)
            metrics = task.make(scratch) or {}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Step(folder, task.target, {"key": key, "metrics": metrics})

    def steps(self) -> list[Step]:
        """Every finished step, by folder of the pipeline and, within one, by time of finishing."""
        paths = self.path.glob("[0-9][0-9]_*/*/facts.json")
        folders = [p.parent for p in paths if not p.parent.name.endswith(".partial")]
        found = [self.find(folder.relative_to(self.path).as_posix()) for folder in folders]
        order = [step for step in found if step]
        return sorted(order, key=lambda s: (s.name.split("/")[0], s.facts["finished"], s.name))


def refuse_older_layout(path: Path) -> None:
    """Raises UserError for a run directory of version 0.1: its recipe has `corpus`."""
    saved = path / "recipe.yaml"
    text = saved.read_text("utf-8", "replace") if saved.is_file() else ""
    if re.findall("^(corpus|corpora):", text, re.MULTILINE) == ["corpus"]:
        raise UserError(
            f"{path} was made by an earlier version of speechgpt (its recipe has `corpus`); its "
            "results are kept and can be listened to; use another --run-dir to go on"
        )


def _nothing(line: str) -> None: ...


def _speed(metrics: dict, seconds: float) -> str:
    """How fast a step went, from what it counted: hours of speech, or tokens."""
    if hours := metrics.get("hours"):
        return f": {hours * 3600 / max(seconds, 1e-9):,.1f} h of speech an hour"
    if speed := metrics.get("tokens_per_second"):
        return f": {speed:,} tokens a second"
    return ""


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
