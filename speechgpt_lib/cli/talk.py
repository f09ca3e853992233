"""`speechgpt transcribe | say | ask`: talking to a finished run."""

from __future__ import annotations

import re
from pathlib import Path

from speechgpt_lib.cli.options import (
    LAB,
    AsJson,
    RunPath,
    VoiceName,
    argument,
    emit,
    open_run,
    option,
    say,
)
from speechgpt_lib.errors import UserError

OutOption = option(Path, "The .wav or .flac file to write.", "--out", "-o")
SOUND = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a")


def transcribe(
    audio: list[Path], run: RunPath = LAB, voice: VoiceName = None, as_json: AsJson = False
) -> None:
    """Write down what is said in one or more sound files; with --json one object a file."""
    from speechgpt_lib.corpora.audio import read_audio

    waves = [read_audio(path) for path in audio]
    for path, heard in zip(audio, _load(run, voice).transcribe_many(waves), strict=True):
        text = f"nothing heard ({heard.nothing_heard})" if heard.nothing_heard else heard.text
        text = text if len(audio) == 1 else f"{path}\t{text}"
        result = {"path": str(path), "text": heard.text, "cut": heard.cut}
        result["nothing_heard"] = heard.nothing_heard
        _answer(result, text, as_json, "transcript")


def say_text(
    text: str,
    out: OutOption,
    run: RunPath = LAB,
    voice: VoiceName = None,
    as_json: AsJson = False,
) -> None:
    """Speak a sentence into a sound file."""
    from speechgpt_lib.corpora.audio import write_audio

    speechgpt = _load(run, voice)
    spoken, note = speechgpt.say(text), speechgpt.note(text)
    write_audio(out, spoken.wave)
    result = {"audio": str(out), "units": spoken.units.tolist(), "note": note, "cut": spoken.cut}
    _answer(result, f"wrote {out}", as_json, "speech")


def ask(
    question: argument(str, "A sound file, or a question in words."),
    reply: option(str, "speech or text.") = "speech",
    out: OutOption = Path("answer.wav"),
    run: RunPath = LAB,
    voice: VoiceName = None,
    temperature: option(float, "0: the likeliest token; the release samples at 0.7.", min=0) = 0.0,
    as_json: AsJson = False,
) -> None:
    """Ask a question in speech or text and get a spoken or written answer."""
    from speechgpt_lib.corpora.audio import read_audio, write_audio
    from speechgpt_lib.language_model.generation import Sampling

    if reply not in ("speech", "text"):
        raise UserError(f"unknown --reply {reply!r}: choose speech or text")
    is_audio = names_a_file(question)
    asked = read_audio(question) if is_audio else question
    speechgpt = _load(run, voice)
    answer = speechgpt.ask(asked, reply, Sampling(temperature) if temperature > 0 else None)
    units, wave = answer.answer_units, answer.wave
    result = {"question_text": answer.question_text, "answer_text": answer.answer_text}
    result |= {"answer_units": None if units is None else units.tolist()}
    result |= {"audio": None if wave is None else str(out), "wellformed": answer.wellformed}
    result |= {"cut": answer.cut, "note": None if is_audio else speechgpt.note(question)}
    result["nothing_heard"] = answer.nothing_heard
    text = f"question  {answer.question_text}\nanswer    {answer.answer_text}"
    if answer.nothing_heard:
        text = f"nothing heard ({answer.nothing_heard}): nothing was answered"
    if wave is not None:
        write_audio(out, wave)
        text += f"\nspoken    {out}"
    _answer(result, text, as_json, "spoken_answer" if reply == "speech" else "written_answer")


def names_a_file(question: str) -> bool:
    """Whether a question means a sound file, be its path mistyped: then words are no question."""
    path = Path(question.strip()).expanduser()
    if path.suffix.lower() in SOUND or (len(question) < 255 and path.is_file()):
        return True
    looks_so = r"(~|\.{0,2})[/\\].*|\S+[/\\]\S+|.*\.[a-z]\w{1,4}"  # a path, or a suffix at the end
    return re.fullmatch(looks_so, question.strip(), re.IGNORECASE | re.DOTALL) is not None


def _load(path: Path, voice: str | None):
    import transformers

    from speechgpt_lib.dialogue.speechgpt import SpeechGPT

    transformers.logging.set_verbosity_error()
    return SpeechGPT.load(open_run(path), voice)


def _answer(result: dict, text: str, as_json: bool, limit: str) -> None:
    """Print a result with its note; one that met its longest length names the recipe's key."""
    emit(result, text + (f"\nnote: {result['note']}" if result.get("note") else ""), as_json)
    if result["cut"]:
        say(f"note: the answer met its longest length and was cut: see generation.{limit}")
