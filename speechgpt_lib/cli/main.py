"""The command line: a thin layer that reads arguments, calls the rooms and prints a result or one clear line of error."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib import __version__, corpora_cli, vocoder_cli
from speechgpt_lib.errors import UserError
from speechgpt_lib.instruct_cli import instruct_app
from speechgpt_lib.text_to_unit_cli import text_to_unit_app
from speechgpt_lib.units_cli import units_app

app = typer.Typer(
    help="SpeechGPT as a course you can run: train one, ask it something, hear it answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
corpora_app = typer.Typer(help="Speech to train and test on.", no_args_is_help=True)
corpora_app.add_typer(corpora_cli.commands)
app.add_typer(corpora_app, name="corpora")
app.add_typer(units_app, name="units")
app.add_typer(vocoder_cli.vocoder_app, name="vocoder")
app.add_typer(text_to_unit_app, name="text-to-unit")
app.add_typer(instruct_app, name="instruct")

RunOption = Annotated[Path, typer.Option("--run", help="The run directory to use.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The .wav or .flac file to write.")]
DEFAULT_RUN = Path("runs/lab")


def main() -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit code 1, an interruption exit code 130."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = app(
            standalone_mode=False
        )  # typer answers an interruption with 130 instead of raising it
        if status == 130:
            print("stopped; what is finished is kept", file=sys.stderr)
        sys.exit(status)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, typer.Abort) as error:
        print(
            f"stopped{f': {error}' if str(error) else ''}; what is finished is kept",
            file=sys.stderr,
        )
        sys.exit(130)
    except OSError as error:
        sys.exit(
            f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}; nothing finished was lost"
        )
    except Exception as error:
        # Wrong options and arguments, in the words of the command-line library.
        if hasattr(error, "format_message"):
            print(f"error: {error.format_message()} (see --help)", file=sys.stderr)
            sys.exit(getattr(error, "exit_code", 2))
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


# --- talking to a trained run -------------------------------------------------------------------------------------------------------
app.command()(vocoder_cli.speak)


@app.command()
def transcribe(
    audio: list[Path], run: RunOption = DEFAULT_RUN, as_json: JsonOption = False
) -> None:
    """Write down what is said in one or more sound files; with --json one object a file."""
    from speechgpt_lib.corpora.audio import read_audio

    waves = [read_audio(path) for path in audio]
    texts = _load(run).transcribe(waves)
    for path, text in zip(audio, texts, strict=True):
        _print(
            {"path": str(path), "text": text},
            text if len(audio) == 1 else f"{path}\t{text}",
            as_json,
        )


@app.command()
def say(
    text: str, out: OutOption, run: RunOption = DEFAULT_RUN, as_json: JsonOption = False
) -> None:
    """Speak a sentence into a sound file."""
    from speechgpt_lib.corpora.audio import write_audio
    from speechgpt_lib.dialogue.speechgpt import lab_note

    spoken, wave = _load(run).say(text)
    write_audio(out, wave)
    note = lab_note(text)
    _print(
        {"audio": str(out), "units": spoken.tolist(), "note": note},
        f"wrote {out}{_with(note)}",
        as_json,
    )


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="A sound file, or a question in words.")],
    reply: Annotated[str, typer.Option(help="speech or text.")] = "speech",
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the spoken answer goes.")] = Path(
        "answer.wav"
    ),
    run: RunOption = DEFAULT_RUN,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; the release samples at 0.7.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a question in speech or text and get a spoken or written answer."""
    from speechgpt_lib.corpora.audio import read_audio, write_audio
    from speechgpt_lib.dialogue.speechgpt import lab_note
    from speechgpt_lib.language_model.generation import Sampling

    if reply not in ("speech", "text"):
        raise UserError(f"unknown --reply {reply!r}: choose speech or text")
    is_audio = _looks_like_audio(question)
    instruction = read_audio(question) if is_audio else question
    answer = _load(run).ask(instruction, reply, Sampling(temperature) if temperature > 0 else None)
    spoken = answer.wave is not None
    if spoken:
        write_audio(out, answer.wave)
    note = None if is_audio else lab_note(question)
    result = {
        "question_text": answer.question_text,
        "answer_text": answer.answer_text,
        "answer_units": answer.answer_units.tolist() if answer.answer_units is not None else None,
        "audio": str(out) if spoken else None,
        "wellformed": answer.wellformed,
        "note": note,
    }
    lines = f"question  {answer.question_text}\nanswer    {answer.answer_text}" + (
        f"\nspoken    {out}" if spoken else ""
    )
    _print(result, lines + _with(note), as_json)


# --- making and scoring a run -------------------------------------------------------------------------------------------------------
@app.command("run")
def run_recipe(
    recipe: Annotated[
        str, typer.Option(help="smoke, lab, release, paper, or the path of a .yaml file.")
    ] = "lab",
    run_dir: Annotated[Path | None, typer.Option(help="Default: runs/<recipe>.")] = None,
    only: Annotated[str | None, typer.Option(help="Notebooks to run, such as 01,02.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Redo what could be reused.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed than the recipe's.")] = None,
) -> None:
    """Run the notebooks of a recipe in order; what is there and unchanged is reused."""
    from speechgpt_lib.notebook.runner import run_notebooks
    from speechgpt_lib.recipes.loading import load_recipe

    settings = load_recipe(recipe, seed)
    if settings.needs:
        raise UserError(
            f"recipe {settings.name} can't run here yet. It needs: {'; '.join(settings.needs)}"
        )
    folder = run_dir or Path("runs") / settings.name
    run_notebooks(
        recipe,
        folder,
        [name.strip() for name in only.split(",")] if only else None,
        force,
        seed=seed,
    )
    if (folder / "09_talk_to_speechgpt" / "evaluation" / "facts.json").exists():
        from speechgpt_lib.evaluation.report import write_report

        write_report(_open(folder))
        print(
            f"report    {folder / 'report.html'}\nlisten    {folder / '09_talk_to_speechgpt' / 'evaluation'}/*.wav"
        )
        print(f'ask it    speechgpt ask "what is two plus three" --run {folder} -o answer.wav')


@app.command()
def evaluate(
    run: RunOption = DEFAULT_RUN,
    set_folder: Annotated[
        Path | None, typer.Option("--set", help="A folder made by `speechgpt corpora sample`.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Evaluate again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a run on its held-out speech, or on any set; writes report.json (and report.html) there."""
    opened = _open(run, quiet=as_json)
    if set_folder is not None:
        from speechgpt_lib.evaluation.measure import evaluate_set
        from speechgpt_lib.runs.artefacts import write_json

        report, path = evaluate_set(opened, set_folder), set_folder / "report.json"
        write_json(path, report)
    else:
        from speechgpt_lib.evaluation.report import make_evaluation
        from speechgpt_lib.runs.artefacts import read_json

        make_evaluation(opened, force)
        path = opened.path / "report.json"
        report = read_json(path)
    figures = {
        k: v
        for k, v in report.items()
        if isinstance(v, dict) and {"value", "n", "low", "high"} <= v.keys()
    }
    lines = [
        f"{k:28} {v['value']:8.3f}   ({v['low']:.3f} to {v['high']:.3f}, n = {v['n']})"
        for k, v in figures.items()
    ]
    _print(report, "\n".join([*lines, f"wrote {path}"]), as_json)


@app.command()
def train(
    step: Annotated[
        str,
        typer.Argument(help="hubert, vocoder, text_to_unit, text_model, stage1, stage2 or stage3."),
    ],
    run: RunOption = DEFAULT_RUN,
    processes: Annotated[int, typer.Option(min=1, help="Processes to train in.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Train again.")] = False,
) -> None:
    """Make one trained step of an existing run, in one process or several."""
    from speechgpt_lib.training.launch import train_step

    train_step(_open(run), step, processes, force)


@app.command()
def plan(
    recipe: Annotated[
        str, typer.Option(help="release, paper, lab, or the path of a .yaml file.")
    ] = "release",
    gpus: Annotated[int, typer.Option(min=1)] = 8,
    gpu_memory: Annotated[float, typer.Option(min=1, help="GB of each GPU.")] = 80.0,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the matmul peak that training reaches.")
    ] = 0.4,
    peak_tflops: Annotated[
        float, typer.Option(min=0.01, help="The matmul peak of a GPU; 989 is an H100 in bf16.")
    ] = 989.0,
    as_json: JsonOption = False,
) -> None:
    """Say what the three stages of a recipe need on so many GPUs: memory, tokens, hours, disk; refuse what can't fit."""
    from dataclasses import asdict

    from speechgpt_lib.language_model import planning
    from speechgpt_lib.recipes.loading import load_recipe

    found = planning.plan(load_recipe(recipe), gpus, gpu_memory, mfu=mfu, peak_tflops=peak_tflops)
    _print(
        found | {"stages": [asdict(stage) for stage in found["stages"]]},
        planning.render(found),
        as_json,
    )


@app.command()
def ablate(
    without: Annotated[str, typer.Argument(help="stage1, stage2 or stage3.")],
    run: RunOption = DEFAULT_RUN,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate a finished run again without one of the three stages (takes about as long as the stages after it)."""
    from speechgpt_lib.evaluation.ablation import ablate as ablate_run

    opened = _open(run, quiet=as_json)
    report = ablate_run(opened, without)
    _print(report, _figures(report), as_json)


@app.command()
def doctor(run: RunOption = DEFAULT_RUN, as_json: JsonOption = False) -> None:
    """Check versions, memory, disk, devices and optional parts, and what each missing one costs; exit code 1 without a required one."""
    from dataclasses import asdict

    from rich.console import Console

    from speechgpt_lib.doctor import diagnose, render

    checks = diagnose(run)
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        Console().print(render(checks))
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@corpora_app.command("sample")
def corpora_sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many sentences.")] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    voice: Annotated[str | None, typer.Option(help="Default: the recipe's target voice.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="A kind of question, or statement; default all in turn.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="The recipe whose training sentences count as seen.")
    ] = "lab",
    any_sentence: Annotated[
        bool, typer.Option("--any", help="Also sentences of the training side.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write fresh test speech of the lab world: wavs and items.jsonl."""
    from speechgpt_lib.corpora.sample import sample_set
    from speechgpt_lib.recipes.loading import load_recipe

    records = sample_set(
        out, count, seed, load_recipe(recipe), voice, kind, held_out=not any_sentence
    )
    _print(
        {"folder": str(out), "items": len(records)},
        f"wrote {len(records)} sentences to {out}",
        as_json,
    )


# --- helpers ------------------------------------------------------------------------------------------------------------------------
def _open(path: Path, quiet: bool = False):
    from speechgpt_lib.runs.run import Run

    return Run.open(path, say=(lambda line: print(line, file=sys.stderr)) if quiet else print)


def _load(path: Path):
    import transformers

    from speechgpt_lib.dialogue.speechgpt import SpeechGPT

    transformers.logging.set_verbosity_error()
    return SpeechGPT.load(_open(path))


def _figures(report: dict) -> str:
    figures = {
        k: v
        for k, v in report.items()
        if isinstance(v, dict) and {"value", "n", "low", "high"} <= v.keys()
    }
    return "\n".join(
        f"{k:28} {v['value']:8.3f}   ({v['low']:.3f} to {v['high']:.3f}, n = {v['n']})"
        for k, v in figures.items()
    )


def _looks_like_audio(question: str) -> bool:
    path = Path(question).expanduser()
    return path.suffix.lower() in (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a") or (
        len(question) < 255 and path.is_file()
    )


def _print(result: dict, text: str, as_json: bool) -> None:
    print(json.dumps(result) if as_json else text)


def _with(note: str | None) -> str:
    return f"\nnote: {note}" if note else ""


if __name__ == "__main__":
    main()
