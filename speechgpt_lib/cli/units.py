"""`speechgpt units encode | extract | train`: a sound file to units, a corpus to unit tables, an
inventory of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from speechgpt_lib.cli.options import (
    DEFAULT_RUN,
    JsonOption,
    emit,
)
from speechgpt_lib.cli.runs import add_step_command
from speechgpt_lib.errors import UserError


class EncodeByDefault(TyperGroup):
    """`speechgpt units AUDIO` is short for `speechgpt units encode AUDIO`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Put `encode` before what is no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["encode", *args]
        return super().parse_args(ctx, args)


units_app = typer.Typer(
    cls=EncodeByDefault,
    no_args_is_help=True,
    help="Sound to units; `units AUDIO` is short for `units encode AUDIO`.",
)

InventoryOption = Annotated[
    Path | None,
    typer.Option("--run", help="Run or inventory folder whose units to use [runs/lab]."),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(help="Instead of --run: a transformers folder or name, or fairseq's .pt."),
]
LayerOption = Annotated[int | None, typer.Option(help="Layer of --encoder, 1 is the first block.")]
KmeansOption = Annotated[
    str | None, typer.Option(help="Centroids for --encoder: .npy, .safetensors, or joblib's .bin.")
]
BackendOption = Annotated[
    str,
    typer.Option(help="own, or fairseq (the real one, by `make fairseq`; needs --encoder x.pt)."),
]


@units_app.command()
def encode(
    audio: Path,
    run: InventoryOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    kmeans: KmeansOption = None,
    backend: BackendOption = "own",
    as_json: JsonOption = False,
) -> None:
    """Turn a sound file into units, as `<sosp><12><7>…<eosp>`."""
    from speechgpt_lib.corpora.audio import read_audio
    from speechgpt_lib.units.foreign import kmeans_from, open_inventory
    from speechgpt_lib.units.sequence import format_units, merge

    if backend not in ("own", "fairseq"):
        raise UserError(f"unknown --backend {backend!r}: choose own or fairseq")
    if backend == "fairseq":
        from speechgpt_lib.units.fairseq_backend import FairseqEncoder

        if not (encoder and encoder.endswith(".pt") and layer and kmeans):
            raise UserError(
                "--backend fairseq needs --encoder FILE.pt, --layer N and --kmeans FILE"
            )
        centroids = kmeans_from(kmeans).centroids
        frames, identity = FairseqEncoder(encoder, layer).units(read_audio(audio), centroids), None
        merged, durations = merge(frames)
    else:
        folder = run or (None if encoder else DEFAULT_RUN)
        inventory = open_inventory(folder, encoder, layer, kmeans)
        (merged, durations), identity = inventory.encode(read_audio(audio)), inventory.id
    text = format_units(merged)
    result = {"path": str(audio), "units": merged.tolist(), "durations": durations.tolist()}
    emit(result | {"inventory": identity, "text": text}, text, as_json)


add_step_command(units_app, "extract", "Turn the corpora of a recipe into unit tables", "units")
add_step_command(
    units_app, "train", "Make an inventory from speech alone: HuBERT, then k-means", "inventory"
)
