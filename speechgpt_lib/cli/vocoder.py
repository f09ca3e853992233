"""`speechgpt speak` and `speechgpt vocoder …`: units to sound, fairseq's vocoder made ours, and
vocoders trained on a corpus."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import typer

from speechgpt_lib.cli.options import LAB, AsJson, RunPath, argument, emit, open_run, option
from speechgpt_lib.cli.runs import add_step_command
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE

vocoder_app = typer.Typer(
    no_args_is_help=True, help="Vocoders of one's own, and the published one."
)


def speak(
    units: argument(str, "<sosp><12><7>…<eosp>, - for standard input, or a folder of unit tables."),
    out: option(Path, "The .wav or .flac file; a folder for unit tables.", "--out", "-o"),
    run: RunPath = LAB,
    vocoder: option(Path | None, "Instead of --run: a folder of `speechgpt vocoder`.") = None,
    speed: option(float, "2 speaks in half the time; the pitch stays.") = 1.0,
    speaker: option(str | None, "One of the vocoder's speakers, where it has several.") = None,
    inventory: option(str | None, "Inventory (id or folder) of the units, as a check.") = None,
    stream: option(bool, "Read - as it comes, write sound once it is final.", "--stream") = False,
    as_json: AsJson = False,
) -> None:
    """Turn units into sound: one string, a table of `units extract`, or a stream."""
    from speechgpt_lib.corpora.audio import write_audio
    from speechgpt_lib.units.foreign import inventory_id
    from speechgpt_lib.units.sequence import parse_units
    from speechgpt_lib.vocoder.synthesis import Vocoder

    opened = Vocoder.load(vocoder or open_run(run, quiet=True).require("vocoder").path)
    voice = {"speed": speed, "inventory": inventory_id(inventory), "speaker": speaker}
    if stream:
        if units != "-":
            wanted = f"give - instead of {units[:30]!r}"
            raise UserError(f"--stream reads units from standard input: {wanted}")
        samples = _stream(opened, out, voice)
    elif units != "-" and not units.lstrip().startswith("<") and Path(units).is_dir():
        result = _speak_tables(opened, Path(units), out, voice)
        text = f"wrote {result['files']} files ({result['seconds']:.0f} s) to {out}"
        return emit(result, text, as_json)
    else:
        parsed = parse_units(sys.stdin.read() if units == "-" else units, opened.unit_count)
        wave = opened.synthesize(parsed, **voice)
        write_audio(out, wave)
        samples = len(wave)
    seconds = round(samples / SAMPLE_RATE, 3)
    emit({"audio": str(out), "seconds": seconds}, f"wrote {out} ({seconds:.1f} s)", as_json)


@vocoder_app.command("import")
def import_published(
    checkpoint: argument(Path, "fairseq's vocoder: g_00500000, vocoder.pt, …"),
    config: argument(Path, "The config.json published beside it."),
    inventory: option(str, "Inventory (id or folder) whose units it speaks; the files don't say."),
    out: option(Path, "Folder for the vocoder.", "--out", "-o"),
    as_json: AsJson = False,
) -> None:
    """Make a published unit HiFi-GAN of fairseq a vocoder of this project; nothing in the file is
    run, fairseq isn't needed."""
    from speechgpt_lib.units.foreign import inventory_id
    from speechgpt_lib.vocoder.published import vocoder_from_fairseq

    made = vocoder_from_fairseq(checkpoint, config, inventory_id(inventory))
    made.save(out)
    facts = {"folder": str(out), "units": made.unit_count, "speakers": list(made.speakers)}
    what = f"{made.unit_count} units of inventory {made.inventory}"
    text = f"{out}: {what}; use it with --vocoder {out}"
    emit(facts | {"inventory": made.inventory}, text, as_json)


WHAT = "Train a vocoder on the units and sound of a recipe's corpora"
add_step_command(vocoder_app, "train", WHAT, "vocoder")


def _stream(vocoder, out: Path, voice: dict) -> int:
    """Standard input as it comes → a sound file, and its samples; what is wrong in the middle
    leaves no file."""
    import soundfile

    from speechgpt_lib.runs.artefacts import atomic_path
    from speechgpt_lib.units.sequence import read_unit_stream

    if out.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"cannot write {out}: the name must end in .wav or .flac")
    stream = vocoder.stream(**voice)
    given = read_unit_stream(iter(lambda: sys.stdin.read(1), ""), vocoder.unit_count)
    with (
        atomic_path(out) as temporary,
        soundfile.SoundFile(temporary, "w", SAMPLE_RATE, 1, "PCM_16") as file,
    ):
        for wave in stream.run(given):
            file.write(wave)
        return file.frames


def _speak_tables(vocoder, tables: Path, out: Path, voice: dict) -> dict:
    """Every utterance of unit tables → a sound file of its name; finished ones are kept, so it can
    be stopped and started again."""
    from speechgpt_lib.corpora.audio import write_audio
    from speechgpt_lib.units.extract import read_units

    folder = tables / "units" if (tables / "units").is_dir() else tables
    rows, samples = read_units(folder, vocoder.inventory), []
    named = ((out / f"{row.id.replace('/', '_')}.wav", row.units) for row in rows)
    missing = ((path, units) for path, units in named if not path.exists())
    while group := list(islice(missing, 64)):
        waves = vocoder.synthesize_many([units for _, units in group], **voice)
        for (path, _), wave in zip(group, waves, strict=True):
            write_audio(path, wave)
            samples.append(len(wave))
    seconds = round(sum(samples) / SAMPLE_RATE, 3)
    return {"folder": str(out), "files": len(samples), "seconds": seconds}
