"""`speechgpt units …`: one sound file to units, a whole corpus to unit tables, and unit inventories of one's own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from speechgpt_lib.errors import UserError

DEFAULT_RUN = Path("runs/lab")


class EncodeByDefault(TyperGroup):
    """`speechgpt units AUDIO` is short for `speechgpt units encode AUDIO`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["encode", *args]
        return super().parse_args(ctx, args)


units_app = typer.Typer(
    cls=EncodeByDefault,
    no_args_is_help=True,
    help="Sound to units; `units AUDIO` is short for `units encode AUDIO`.",
)

RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run", help="Run directory (or inventory folder) whose units to use [runs/lab]."
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(help="Instead of --run: a transformers folder or name, or a fairseq .pt file."),
]
LayerOption = Annotated[int | None, typer.Option(help="Layer of --encoder, 1 is the first block.")]
KmeansOption = Annotated[
    str | None,
    typer.Option(help="Centroids for --encoder: .npy, .safetensors, or the published joblib .bin."),
]
BackendOption = Annotated[
    str,
    typer.Option(
        help="own, or fairseq (real fairseq, installed by `make fairseq`; needs --encoder x.pt)."
    ),
]
CorpusOption = Annotated[
    str, typer.Option(help="librispeech, common_voice, gigaspeech, libri_light, lj_speech or vctk.")
]
RootOption = Annotated[Path, typer.Option(help="The corpus on disk.")]
SplitOption = Annotated[
    list[str] | None, typer.Option(help="Only this split or subset; may be given several times.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@units_app.command()
def encode(
    audio: Path,
    run: RunOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    kmeans: KmeansOption = None,
    backend: BackendOption = "own",
    as_json: JsonOption = False,
) -> None:
    """Turn a sound file into units, as `<sosp><12><7>…<eosp>`."""
    from speechgpt_lib.corpora.audio import read_audio
    from speechgpt_lib.units.foreign import kmeans_from
    from speechgpt_lib.units.sequence import format_units, merge

    if backend not in ("own", "fairseq"):
        raise UserError(f"unknown --backend {backend!r}: choose own or fairseq")
    if backend == "fairseq":
        from speechgpt_lib.units.fairseq_backend import FairseqEncoder

        if not (encoder and encoder.endswith(".pt") and layer and kmeans):
            raise UserError(
                "--backend fairseq needs --encoder FILE.pt, --layer N and --kmeans FILE"
            )
        frames, identity = (
            FairseqEncoder(encoder, layer).units(read_audio(audio), kmeans_from(kmeans).centroids),
            None,
        )
        merged, durations = merge(frames)
    else:
        inventory = _inventory(run, encoder, layer, kmeans)
        merged, durations = inventory.encode(read_audio(audio))
        identity = inventory.id
    result = {
        "path": str(audio),
        "units": merged.tolist(),
        "durations": durations.tolist(),
        "inventory": identity,
    }
    text = format_units(merged)
    print(json.dumps(result | {"text": text}) if as_json else text)


@units_app.command()
def extract(
    corpus: CorpusOption,
    root: RootOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the utterance table, the inventory and the units."
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            help="Whose run to take the inventory from when neither --run nor --encoder is given."
        ),
    ] = "lab",
    run: RunOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    kmeans: KmeansOption = None,
    split: SplitOption = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16 (faster; its misses against fp32 are counted).")
    ] = "fp32",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Default: one per core on a CPU, one on a GPU.")
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            help="For the jobs of an array: only shards A:B, or K::N for every N-th from K."
        ),
    ] = None,
    launched: Annotated[
        int, typer.Option(min=1, help="How many processes torchrun or accelerate launch starts.")
    ] = 1,
    long_audio: Annotated[
        str, typer.Option(help="exact, or release (chunks of 100 s, as published).")
    ] = "exact",
    batch_seconds: Annotated[
        float, typer.Option(min=0, help="Padded audio in a batch; 0 chooses by device.")
    ] = 0.0,
    shard_size: Annotated[int, typer.Option(min=1, help="Utterances in a shard.")] = 1000,
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="More unreadable utterances than this are an error.")
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Turn a corpus into unit tables; stopped at any point and started again, it goes on with the shard it was at.

    Several machines: give each its --shards, or start N processes by torchrun or `accelerate launch` with --launched N.
    """
    from speechgpt_lib.corpora.prepare import prepare
    from speechgpt_lib.units.corpus_units import extract_corpus
    from speechgpt_lib.units.encode import Extraction

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if (
        world != launched
    ):  # a launcher that starts processes which don't know of each other would do everything N times
        raise UserError(
            f"--launched says {launched}, but {world} processes know of each other: start exactly {launched}, or change it"
        )
    settings = Extraction(_device(device), precision, batch_seconds, long_audio)
    chosen = shard_slice(shards, rank, world)
    folder = run or (Path("runs") / recipe if encoder is None else None)
    inventory = _save_inventory(_inventory(folder, encoder, layer, kmeans), out / "inventory")
    table = out / "utterances"
    say = (lambda line: None) if rank else (lambda line: print(line, file=sys.stderr))
    if rank == 0:
        split_of = split[0] if split and len(split) == 1 else split
        prepare(
            corpus,
            root,
            table,
            split_of,
            max_bad_share=max_bad_share,
            shard_size=shard_size,
            say=say,
        )
    _wait_for(table / "summary.json", inventory)
    hours = json.loads((table / "summary.json").read_text())["hours"]
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if settings.device == "cpu" and world == 1 else 1
    with _progress(hours, quiet=as_json or rank > 0) as on_seconds:
        summary = extract_corpus(
            table,
            root,
            inventory,
            out / "units",
            settings,
            processes,
            chosen,
            max_bad_share,
            on_seconds,
        )
    lines = [
        f"{summary['hours']:.2f} h in {summary['utterances']} utterances → {summary['units']} units, shards {summary['shards']}"
    ]
    if summary["bad"]:
        lines.append(f"{summary['bad']} utterances in quarantine: {out}/units/quarantine-*.parquet")
    if summary["miss_rate"] is not None:
        lines.append(
            f"{precision} gave another unit than fp32 in {summary['miss_rate']:.3%} of the frames checked"
        )
    if summary["approximate"]:
        lines.append(
            f"{summary['approximate']} recordings are approximate: longer than {settings.attention_limit_s:.0f} s"
        )
    if rank == 0:
        print(json.dumps(summary) if as_json else "\n".join(lines))


@units_app.command("train")
def train_inventory(
    corpus: CorpusOption,
    root: RootOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the utterance table, the training and the inventory."
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            help="Whose `units` section to follow: smoke, lab, or the path of a .yaml file."
        ),
    ] = "lab",
    split: SplitOption = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, max=2, help="1: MFCC targets. 2: then targets from the first encoder."),
    ] = None,
    encoder: EncoderOption = None,
    layer: Annotated[int | None, typer.Option(help="Default: units.layer of the recipe.")] = None,
    clusters: Annotated[
        int | None, typer.Option(help="Default: units.clusters of the recipe.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a unit inventory from speech alone: HuBERT, then k-means on a layer; with --encoder k-means only."""
    from speechgpt_lib.corpora.prepare import prepare
    from speechgpt_lib.recipes.loading import load_recipe
    from speechgpt_lib.training.options import TrainingOptions
    from speechgpt_lib.units.foreign import encoder_from
    from speechgpt_lib.units.training import train_on_corpus

    settings = load_recipe(recipe, seed).units
    if iterations is not None:
        settings = settings.model_copy(
            update={"hubert": settings.hubert.model_copy(update={"iterations": iterations})}
        )
    settings = settings.model_copy(
        update={k: v for k, v in {"layer": layer, "clusters": clusters}.items() if v is not None}
    )
    table = out / "utterances"
    prepare(corpus, root, table, split, say=lambda line: print(line, file=sys.stderr))

    def tell(record: dict) -> None:
        if record["step"] % 100 == 0:
            print(
                f"step {record['step']}: {record['masked_accuracy']:.1%} of the hidden frames guessed",
                file=sys.stderr,
            )

    model, normalize = encoder_from(encoder) if encoder else (None, False)
    options = TrainingOptions(seed, on_log=tell)
    inventory = train_on_corpus(table, root, settings, out, options, model, normalize)
    result = {
        "inventory": inventory.id,
        "clusters": inventory.count,
        "layer": inventory.layer,
        "folder": str(out / "inventory"),
    }
    print(
        json.dumps(result)
        if as_json
        else f"inventory {inventory.id} in {out / 'inventory'}: use it with --run {out / 'inventory'}"
    )


# --- helpers ------------------------------------------------------------------------------------------------------------------------
def _inventory(run: Path | None, encoder: str | None, layer: int | None, kmeans: str | None):
    from speechgpt_lib.units.foreign import open_inventory

    return open_inventory(run or (None if encoder else DEFAULT_RUN), encoder, layer, kmeans)


def _save_inventory(inventory, folder: Path) -> Path:
    """Keep the inventory beside its units, for the worker processes and for whoever reads the units later."""
    from speechgpt_lib.runs.artefacts import atomic_path, read_json
    from speechgpt_lib.units.inventory import check_inventory

    if folder.is_dir():
        check_inventory(
            inventory.id, read_json(folder / "inventory.json")["id"], f"{folder.parent}"
        )
        return folder
    with atomic_path(folder) as temporary:
        inventory.save(temporary)
    return folder


def _device(device: str | None) -> str:
    import torch

    if device is None:
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {device} was asked for, but torch sees no GPU: leave it out, or install torch with CUDA"
        )
    return device


def shard_slice(text: str | None, rank: int, world: int) -> slice:
    if text is None:
        return slice(rank, None, world)
    if world > 1:
        raise UserError(
            "--shards and several launched processes exclude each other: a process takes its part by its rank"
        )
    parts = text.split(":")
    if (
        len(parts) not in (2, 3)
        or not all(p == "" or p.isdigit() for p in parts)
        or (len(parts) == 3 and parts[2] == "0")
    ):
        raise UserError(
            f"--shards {text!r} is no range: expected A:B, such as 0:10, or K::N for every N-th from K"
        )
    return slice(*(int(p) if p else None for p in parts))


def _wait_for(summary: Path, inventory: Path, patience_s: float = 6 * 3600) -> None:
    """Processes launched together: the first one prepares, the others wait."""
    started = time.monotonic()
    while not (summary.is_file() and (inventory / "inventory.json").is_file()):
        if time.monotonic() - started > patience_s:
            raise UserError(
                f"{summary} did not come within {patience_s / 3600:.0f} h: did the first process fail?"
            )
        time.sleep(1)


@contextlib.contextmanager
def _progress(hours: float, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """A bar with the hours of audio done, their speed against real time, and the time left."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.completed:.2f} of {task.total:.2f} h  {task.fields[speed]}")
    with Progress(
        BarColumn(), text, TimeRemainingColumn(), console=Console(stderr=True)
    ) as progress:
        task, started = progress.add_task("units", total=hours, speed=""), time.monotonic()

        def on_seconds(seconds: float) -> None:
            progress.update(task, advance=seconds / 3600)
            done = progress.tasks[0].completed * 3600 / max(time.monotonic() - started, 1e-9)
            progress.update(task, speed=f"{done:.0f} x real time")

        yield on_seconds
