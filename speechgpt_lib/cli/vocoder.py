"""`speechgpt speak` and `speechgpt vocoder …`: units to sound, fairseq's vocoder made ours, and vocoders trained on a corpus."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.errors import UserError

vocoder_app = typer.Typer(
    no_args_is_help=True, help="Vocoders of one's own, and the published one."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


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
    run: Annotated[Path, typer.Option("--run", help="The run directory to use.")] = Path(
        "runs/lab"
    ),
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
    print(json.dumps(result) if as_json else text)


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
    """Make a published unit HiFi-GAN of fairseq a vocoder of this project; nothing in the file is run, fairseq isn't needed."""
    from speechgpt_lib.vocoder.published import vocoder_from_fairseq

    made = vocoder_from_fairseq(checkpoint, config, inventory_id(inventory))
    made.save(out)
    facts = {
        "folder": str(out),
        "units": made.unit_count,
        "speakers": list(made.speakers),
        "inventory": made.inventory,
    }
    print(
        json.dumps(facts)
        if as_json
        else f"{out}: {made.unit_count} units of inventory {made.inventory}; use it with --vocoder {out}"
    )


@vocoder_app.command("train")
def train_on_corpus(
    units: Annotated[Path, typer.Argument(help="Folder that `speechgpt units extract` wrote.")],
    root: Annotated[Path, typer.Option(help="The corpus on disk, as given to `units extract`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the vocoder; training resumes from it.")
    ],
    recipe: Annotated[
        str,
        typer.Option(
            help="Whose `vocoder` section to follow: lab, release, or the path of a .yaml file."
        ),
    ] = "release",
    many_speakers: Annotated[
        bool, typer.Option("--many-speakers", help="Learn a vector for each speaker of the corpus.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: as in the recipe.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Over all processes; default: as in the recipe.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    launched: Annotated[
        int, typer.Option(min=1, help="How many processes torchrun or accelerate launch starts.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a vocoder on the units and sound files of a corpus; killed at any point and started again, it goes on.

    On several GPUs: torchrun --nproc_per_node 8 -m speechgpt_lib.cli vocoder train … --launched 8
    """
    from speechgpt_lib.recipes.loading import load_recipe
    from speechgpt_lib.vocoder.corpus import train_on_units

    settings = load_recipe(recipe, seed).vocoder
    optimization = settings.optimization.model_copy(update={"steps": steps} if steps else {})
    settings = settings.model_copy(
        update={"optimization": optimization} | ({"batch_size": batch_size} if batch_size else {})
    )
    facts = train_on_units(
        units,
        root,
        settings,
        out,
        many_speakers=many_speakers,
        seed=seed,
        device=device,
        world_size=launched,
        say=_say,
    )
    if facts:
        print(json.dumps(facts) if as_json else f"vocoder in {out}: use it with --vocoder {out}")


# --- helpers ------------------------------------------------------------------------------------------------------------------------
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _open(run: Path, folder: Path | None):
    from speechgpt_lib import pipeline
    from speechgpt_lib.runs.run import Run
    from speechgpt_lib.vocoder.synthesis import Vocoder

    return Vocoder.load(folder or Run.open(run, say=_say).require(pipeline.VOCODER).path)


def inventory_id(inventory: str | None) -> str | None:
    """The id of an inventory that is given as such, or by a folder that `inventory_facts` takes."""
    if inventory is None or not Path(inventory).is_dir():
        return inventory
    return str(inventory_facts(Path(inventory))["id"])


def inventory_facts(folder: Path) -> dict:
    """What is known of the inventory in `folder`: its own, that of a run, or that of `units extract`."""
    from speechgpt_lib.runs.artefacts import read_json
    from speechgpt_lib.units.foreign import RUN_INVENTORY

    for place in (folder, folder / "inventory", folder / RUN_INVENTORY):
        if (place / "inventory.json").is_file():
            return read_json(place / "inventory.json")
    raise UserError(
        f"no unit inventory in {folder}: give its id, its folder, or that of a run or of `units extract`"
    )


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
    """Every utterance of unit tables → a sound file of its name; finished ones are kept, so it can be stopped and started again."""
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
