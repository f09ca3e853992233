"""`speechgpt speak` and `speechgpt vocoder …`: units to sound, fairseq's vocoder made ours, and
vocoders trained on a corpus."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.cli.options import (
    DEFAULT_RUN,
    JsonOption,
    RunOption,
    emit,
    open_run,
)
from speechgpt_lib.cli.runs import add_step_command
from speechgpt_lib.errors import UserError

vocoder_app = typer.Typer(
    no_args_is_help=True, help="Vocoders of one's own, and the published one."
)


def speak(
    units: Annotated[
        str,
        typer.Argument(
            help="<sosp><12><7>…<eosp>, - for standard input, or a folder of unit tables."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The .wav or .flac file to write; a folder for unit tables."
        ),
    ],
    run: RunOption = DEFAULT_RUN,
    vocoder: Annotated[
        Path | None, typer.Option(help="Instead of --run: a folder made by `speechgpt vocoder`.")
    ] = None,
    speed: Annotated[float, typer.Option(help="2 speaks in half the time; the pitch stays.")] = 1.0,
    speaker: Annotated[
        str | None, typer.Option(help="One of the vocoder's speakers, where it has several.")
    ] = None,
    inventory: Annotated[
        str | None,
        typer.Option(help="Inventory (id or folder) of the units; another's are refused."),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Read units from - as they come, write sound as it becomes final."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn units into sound: one string, a table of `units extract`, or a stream."""
    from speechgpt_lib.corpora.audio import write_audio
    from speechgpt_lib.rates import SAMPLE_RATE
    from speechgpt_lib.units.foreign import inventory_id
    from speechgpt_lib.units.sequence import parse_units

    opened = _open(run, vocoder)
    identity = inventory_id(inventory)
    if stream:
        if units != "-":
            raise UserError(
                f"--stream reads units from standard input: give - instead of {units[:30]!r}"
            )
        seconds = _stream(opened, out, speed, identity, speaker)
        result, text = {"audio": str(out), "seconds": seconds}, f"wrote {out} ({seconds:.1f} s)"
    elif units != "-" and not units.lstrip().startswith("<") and Path(units).is_dir():
        result = _speak_tables(opened, Path(units), out, speed, speaker)
        text = f"wrote {result['files']} files ({result['seconds']:.0f} s) to {out}"
    else:
        parsed = parse_units(sys.stdin.read() if units == "-" else units, opened.unit_count)
        wave = opened.synthesize(parsed, speed=speed, inventory=identity, speaker=speaker)
        write_audio(out, wave)
        seconds = len(wave) / SAMPLE_RATE
        result, text = (
            {"audio": str(out), "seconds": round(seconds, 3)},
            f"wrote {out} ({seconds:.1f} s)",
        )
    emit(result, text, as_json)


@vocoder_app.command("import")
def import_published(
    checkpoint: Annotated[
        Path, typer.Argument(help="fairseq's vocoder: g_00500000, vocoder.pt, …")
    ],
    config: Annotated[Path, typer.Argument(help="The config.json published beside it.")],
    inventory: Annotated[
        str,
        typer.Option(help="Inventory (id or folder) whose units it speaks; the files don't say."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the vocoder.")],
    as_json: JsonOption = False,
) -> None:
    """Make a published unit HiFi-GAN of fairseq a vocoder of this project; nothing in the file is
    run, fairseq isn't needed."""
    from speechgpt_lib.units.foreign import inventory_id
    from speechgpt_lib.vocoder.published import vocoder_from_fairseq

    made = vocoder_from_fairseq(checkpoint, config, inventory_id(inventory))
    made.save(out)
    facts = {
        "folder": str(out),
        "units": made.unit_count,
        "speakers": list(made.speakers),
        "inventory": made.inventory,
    }
    text = (
        f"{out}: {made.unit_count} units of inventory {made.inventory}; use it with --vocoder {out}"
    )
    emit(facts, text, as_json)


add_step_command(
    vocoder_app, "train", "Train a vocoder on the units and sound of a recipe's corpora", "vocoder"
)


def _open(run: Path, folder: Path | None):
    from speechgpt_lib.vocoder.synthesis import Vocoder

    return Vocoder.load(folder or open_run(run, quiet=True).require("vocoder").path)


def _stream(vocoder, out: Path, speed: float, identity: str | None, speaker: str | None) -> float:
    """Standard input as it comes → a sound file; what is wrong in the middle leaves no file."""
    import soundfile

    from speechgpt_lib.rates import SAMPLE_RATE
    from speechgpt_lib.runs.artefacts import atomic_path
    from speechgpt_lib.units.sequence import read_unit_stream

    if out.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"cannot write {out}: the name must end in .wav or .flac")
    stream = vocoder.stream(speed, identity, speaker)
    pieces = iter(lambda: sys.stdin.read(1), "")
    with (
        atomic_path(out) as temporary,
        soundfile.SoundFile(temporary, "w", SAMPLE_RATE, 1, "PCM_16") as file,
    ):
        for wave in stream.run(read_unit_stream(pieces, vocoder.unit_count)):
            file.write(wave)
        frames = file.frames
    return round(frames / SAMPLE_RATE, 3)


def _speak_tables(vocoder, tables: Path, out: Path, speed: float, speaker: str | None) -> dict:
    """Every utterance of unit tables → a sound file of its name; finished ones are kept, so it can
    be stopped and started again."""
    from itertools import islice

    from speechgpt_lib.corpora.audio import write_audio
    from speechgpt_lib.rates import SAMPLE_RATE
    from speechgpt_lib.units.extract import read_units

    folder = tables / "units" if (tables / "units").is_dir() else tables
    rows, samples, files = iter(read_units(folder, vocoder.inventory)), 0, 0
    while group := list(islice(rows, 64)):
        paths = [out / f"{row.id.replace('/', '_')}.wav" for row in group]
        missing = [(row, path) for row, path in zip(group, paths, strict=True) if not path.exists()]
        waves = vocoder.synthesize_many(
            [row.units for row, _ in missing], speed=speed, speaker=speaker
        )
        for (_, path), wave in zip(missing, waves, strict=True):
            write_audio(path, wave)
            samples += len(wave)
        files += len(missing)
    return {"folder": str(out), "files": files, "seconds": round(samples / SAMPLE_RATE, 3)}
