"""`speechgpt transcribe | say | ask`: talking to a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.cli.options import DEFAULT_RUN, JsonOption, RunOption, emit, open_run, say
from speechgpt_lib.errors import UserError

OutOption = Annotated[Path, typer.Option("--out", "-o", help="The .wav or .flac file to write.")]
SOUND = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a")


def add_talk_commands(app: typer.Typer) -> None:
    """Put these commands into the command line."""
    app.command()(transcribe)
    app.command("say")(say_text)
    app.command()(ask)


def transcribe(
    audio: list[Path], run: RunOption = DEFAULT_RUN, as_json: JsonOption = False
) -> None:
    """Write down what is said in one or more sound files; with --json one object a file."""
    from speechgpt_lib.corpora.audio import read_audio

    waves = [read_audio(path) for path in audio]
    for path, heard in zip(audio, _load(run).transcribe_many(waves), strict=True):
        text = heard.text if len(audio) == 1 else f"{path}\t{heard.text}"
        emit({"path": str(path), "text": heard.text, "cut": heard.cut}, text, as_json)
        _warn(heard.cut, "transcript")


def say_text(
    text: str, out: OutOption, run: RunOption = DEFAULT_RUN, as_json: JsonOption = False
) -> None:
    """Speak a sentence into a sound file."""
    from speechgpt_lib.corpora.audio import write_audio

    speechgpt = _load(run)
    spoken = speechgpt.say(text)
    write_audio(out, spoken.wave)
    note = speechgpt.note(text)
    result = {"audio": str(out), "units": spoken.units.tolist(), "note": note, "cut": spoken.cut}
    emit(result, f"wrote {out}{_with(note)}", as_json)
    _warn(spoken.cut, "speech")


def ask(
    question: Annotated[str, typer.Argument(help="A sound file, or a question in words.")],
    reply: Annotated[str, typer.Option(help="speech or text.")] = "speech",
    out: OutOption = Path("answer.wav"),
    run: RunOption = DEFAULT_RUN,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; the release samples at 0.7.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a question in speech or text and get a spoken or written answer."""
    from speechgpt_lib.corpora.audio import read_audio, write_audio
    from speechgpt_lib.language_model.generation import Sampling

    if reply not in ("speech", "text"):
        raise UserError(f"unknown --reply {reply!r}: choose speech or text")
    is_audio = _looks_like_audio(question)
    instruction = read_audio(question) if is_audio else question
    speechgpt = _load(run)
    answer = speechgpt.ask(instruction, reply, Sampling(temperature) if temperature > 0 else None)
    spoken = answer.wave is not None
    if spoken:
        write_audio(out, answer.wave)
    note = None if is_audio else speechgpt.note(question)
    result = {
        "question_text": answer.question_text,
        "answer_text": answer.answer_text,
        "answer_units": answer.answer_units.tolist() if answer.answer_units is not None else None,
        "audio": str(out) if spoken else None,
        "wellformed": answer.wellformed,
        "cut": answer.cut,
        "note": note,
    }
    lines = f"question  {answer.question_text}\nanswer    {answer.answer_text}"
    emit(result, lines + (f"\nspoken    {out}" if spoken else "") + _with(note), as_json)
    _warn(answer.cut, "spoken_answer" if reply == "speech" else "written_answer")


def _load(path: Path):
    import transformers

    from speechgpt_lib.dialogue.speechgpt import SpeechGPT

    transformers.logging.set_verbosity_error()
    return SpeechGPT.load(open_run(path))


def _looks_like_audio(question: str) -> bool:
    path = Path(question).expanduser()
    return path.suffix.lower() in SOUND or (len(question) < 255 and path.is_file())


def _with(note: str | None) -> str:
    return f"\nnote: {note}" if note else ""


def _warn(cut: bool, limit: str) -> None:
    if cut:
        say(f"note: the answer met its longest length and was cut: see generation.{limit}")
