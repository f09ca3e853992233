"""`speechgpt units encode | extract | train`: a sound file to units, a corpus to unit tables, an
inventory of one's own."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.core import TyperGroup

from speechgpt_lib.cli.options import LAB, AsJson, emit, option
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


@units_app.command()
def encode(
    audio: Path,
    run: option(Path | None, "Run or inventory folder whose units to use [runs/lab].") = None,
    encoder: option(str | None, "Instead of --run: transformers' folder or name, or a .pt.") = None,
    layer: option(int | None, "Layer of --encoder, 1 is the first block.") = None,
    kmeans: option(str | None, "Its centroids: .npy, .safetensors, or joblib's .bin.") = None,
    backend: option(str, "own, or fairseq (by `make fairseq`; needs --encoder x.pt).") = "own",
    as_json: AsJson = False,
) -> None:
    """Turn a sound file into units, as `<sosp><12><7>…<eosp>`."""
    from speechgpt_lib.corpora.audio import read_audio
    from speechgpt_lib.units.foreign import kmeans_from, open_inventory
    from speechgpt_lib.units.sequence import format_units, merge

    if backend == "fairseq":
        from speechgpt_lib.units.fairseq_backend import FairseqEncoder

        if not (encoder and layer and kmeans):
            needed = "--encoder FILE.pt, --layer N and --kmeans FILE"
            raise UserError(f"--backend fairseq needs {needed}")
        centroids = kmeans_from(kmeans).centroids
        frames, identity = FairseqEncoder(encoder, layer).units(read_audio(audio), centroids), None
        merged, durations = merge(frames)
    elif backend == "own":
        inventory = open_inventory(run or (None if encoder else LAB), encoder, layer, kmeans)
        (merged, durations), identity = inventory.encode(read_audio(audio)), inventory.id
    else:
        raise UserError(f"unknown --backend {backend!r}: choose own or fairseq")
    rate = {} if identity is None else {"frame_rate_hz": inventory.frame_rate}
    text = format_units(merged)
    result = {"path": str(audio), "units": merged.tolist(), "durations": durations.tolist()}
    emit(result | rate | {"inventory": identity, "text": text}, text, as_json)


add_step_command(units_app, "extract", "Turn the corpora of a recipe into unit tables", "units")
WHAT = "Make an inventory from speech alone: HuBERT, then k-means"
add_step_command(units_app, "train", WHAT, "inventory")
