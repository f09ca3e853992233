"""The session cell of a notebook: its parameters → an open run, and speech to look at."""

import contextlib
import functools
import os
import platform
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from IPython import get_ipython

import speechgpt_lib
from speechgpt_lib.corpora.audio import BadAudio
from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import HELD_OUT, Corpora
from speechgpt_lib.corpora.speech import synthesize
from speechgpt_lib.corpora.tables import Utterance, hear, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.figure import show_table, use_house_style
from speechgpt_lib.pipeline.graph import STEPS, make, order
from speechgpt_lib.pipeline.step import Definition, OnLog
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.sources import LabCorpus
from speechgpt_lib.runs.machine import return_free_memory
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.inventory import UnitInventory

QUESTION = "anna is in the house and peter is in the garden where is anna"
ANSWER = "anna is in the house"


@dataclass(frozen=True)
class Clip:
    """Speech to look at: wave (samples,) at 16 kHz, its words and its voice."""

    wave: np.ndarray
    text: str
    voice: str
    phones: tuple[tuple[float, float, str], ...] = ()  # (start s, end s, label), if it is aligned
    answer: str = ""  # if it is a question


def _clip(u: Utterance) -> Clip:
    return Clip(u.read(), u.text, u.voice, tuple(u.phones), u.answer)


@dataclass(frozen=True)
class Session:
    """The open run of a notebook; `device` ("cpu", "cuda") is resolved, `force` is for `make`."""

    run: Run
    device: str
    force: bool

    @property
    def lab(self) -> LabCorpus | None:
        """The lab world, where it is a corpus of the recipe: its sentences can be spoken here."""
        return self.run.recipe.lab

    def makes(self, step: str) -> bool:
        """Whether the recipe has this step made here, with a log of its training; if not, the cell
        says that what it shows is left out, and why."""
        if step not in order(self.run.recipe):
            print(f"left out: no {step} is made; what it would be for is imported")
        elif STEPS[step].imported(self.run.recipe) is not None:
            print(f"left out: {step} was imported, and came without its training")
        else:
            return True
        return False

    def make(self, step: str | Definition, on_log: OnLog = None) -> Step:
        """The finished step `step` ("units"), made unless it is there; what it needs must be."""
        return make(self.run, step, self.force, on_log)

    def require(self, *names: str) -> dict[str, Step]:
        """The finished steps by name; UserError says how to make a missing one."""
        found = {name: self.run.require(name) for name in names}
        for step in found.values():
            made = f"made {step.facts['finished'][:16]}, {step.facts['wall_seconds']:.0f} s"
            print(f"found    {step.name} ({made})")
        return found

    def inventory(self) -> UnitInventory:
        """The run's unit inventory."""
        return UnitInventory.load(self.run.require("inventory").path)

    def corpora(self) -> Corpora:
        """The recipe's corpora: their text, their questions, their judges."""
        corpus = self.run.find("corpus")
        return open_corpora(self.run.recipe, corpus and corpus.path)

    def example(self) -> Clip:
        """The clip that goes through all notebooks: the lab's question, or a held-out recording."""
        if self.lab:
            return self.say(QUESTION, self.lab.target_voice, ANSWER)
        corpus = make(self.run, "corpus").path
        known = [u for u in read_utterances(corpus, where={"split": HELD_OUT}) if u.text]
        for u in sorted(known, key=lambda u: (abs(u.seconds - 4.0), u.id)):  # best: of 4 s
            for heard in hear(corpus, {"id": u.id}):
                return _clip(heard)
        raise UserError("no held-out recording with text can be read: see the corpus' quarantine")

    def say(self, text: str, voice: str, answer: str = "") -> Clip:
        """A sentence in one of the lab's voices."""
        wave, phones = synthesize(text, voice)
        return Clip(wave, text, voice, tuple(phones), answer)

    def voices(self, text: str = ANSWER) -> dict[str, Clip]:
        """A clip for each role of voices: `text` in the lab's voices, or recordings."""
        if lab := self.lab:
            roles = {"answers you": lab.target_voice, "understood": lab.aligned_voices[0]}
            roles["held out"] = lab.held_out_voice
            return {role: self.say(text, voice) for role, voice in roles.items()}
        first: dict[str, Clip] = {}
        for u in read_utterances(make(self.run, "corpus").path, audio=True):
            role = f"split {u.split}"
            if role not in first and u.voice not in {clip.voice for clip in first.values()}:
                with contextlib.suppress(BadAudio):
                    first[role] = _clip(u)
        return first

    def clips(self, count: int, split: str = "test") -> list[Clip]:
        """About `count` utterances of a split, spread evenly over their table."""
        corpus, found = self.run.require("corpus").path, []
        ids = [u.id for u in read_utterances(corpus, where={"split": split})]
        chosen = {"id": ids[:: max(1, round(len(ids) / count))]}
        for u in read_utterances(corpus, audio=True, phones=True, where=chosen):
            with contextlib.suppress(BadAudio):  # the extraction counts it
                found.append(_clip(u))
        return found

    def folder(self, name: str) -> Path:
        """A folder for what cells write: <run>/<name>, or a temporary one where the run is another
        person's, to read only."""
        writable = os.access(self.run.path, os.W_OK)
        return (self.run.path if writable else Path(_scratch().name)) / name

    def media(self, notebook: str) -> Path:
        """The folder for a notebook's figures and clips: <run>/notebooks/media/<notebook>."""
        return self.folder("notebooks") / "media" / notebook


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="speechgpt-notebook-")


def default_run_dir(recipe: str) -> Path:
    """`runs/<recipe>` beside the folder of notebooks, wherever a notebook was started from.

    This folder is the current one or lies in it; else it is that of the clone.
    """
    here, clone = Path.cwd(), Path(speechgpt_lib.__file__).parents[1]
    for place in (here, here.parent, clone):
        if any((place / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return place / "runs" / recipe
    return here / "runs" / recipe


def _after_cell(result: object) -> None:
    return_free_memory(collect=False)


def start(
    recipe: str,
    run_dir: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    force: bool = False,
) -> Session:
    """Open the run directory for a recipe; print versions, device, threads, seed and the folder.

    `run_dir` is by default `default_run_dir`, which follows the recipe.  `seed` and `device`
    replace the recipe's; all random numbers start at the seed.

    Raises UserError for an unknown recipe or device, or a folder that can't be written or belongs
    to another recipe or seed (with `force` it is given to this one).
    """
    given = {"seed": seed, "device": device}
    settings = load_recipe(
        recipe, {key: value for key, value in given.items() if value is not None}
    )
    folder = Path(run_dir).expanduser() if run_dir else default_run_dir(settings.name)
    run = Run.create(folder.absolute(), settings, force=force)
    session = Session(run, resolve_device(settings.device), force)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    use_house_style()
    if shell := get_ipython():  # what a cell took is not kept by those after it
        shell.events.register("post_run_cell", _after_cell)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"speechgpt_lib {speechgpt_lib.__version__} ({versions})")
    print(f"recipe   {settings.name}, seed {settings.seed}: {settings.summary}")
    print(f"device   {session.device}, {torch.get_num_threads()} threads")
    print(f"results  {os.path.relpath(run.path)}{' (made anew: force is on)' if force else ''}")
    if not os.access(run.path, os.W_OK):
        print(f"         to read only: what cells write themselves goes to {_scratch().name}")
    return session


def show_results(session: Session, notebook: str) -> None:
    """Show what the steps of a notebook ("01_unit_extraction") left: files, sizes, hashes, cost."""
    rows = []
    for step in session.run.steps():
        if step.name.startswith(f"{notebook}/"):
            cost = f"{step.facts['wall_seconds']:.0f} s, {step.facts['peak_memory_mb']:.0f} MB"
            for name, known in step.facts["outputs"].items():
                row = {"step": step.name, "file": name, "MB": known["bytes"] / 1e6}
                rows.append(row | {"sha256": known["sha256"][:8], "step took": cost})
    if rows:
        show_table(rows, f"What {notebook} holds in the run directory.")
    else:
        print(f"nothing in {notebook} yet")


def write_librispeech(root: Path, clips: Sequence[Clip], broken: int) -> None:
    """Write clips in LibriSpeech's layout, the last into test-clean; number `broken` is silent."""
    for k, clip in enumerate(clips):
        chapter = root / ("test-clean" if k == len(clips) - 1 else "dev-clean") / "1" / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        soundfile.write(chapter / f"1-1-{k:04}.flac", clip.wave * (k != broken), SAMPLE_RATE)
        with open(chapter / "1-1.trans.txt", "a") as texts:
            texts.write(f"1-1-{k:04} {clip.text.upper()}\n")
