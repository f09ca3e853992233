"""`speechgpt text-to-unit …`: fairseq's text-to-unit model made ours, one trained on a corpus, and texts to units."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.errors import UserError

text_to_unit_app = typer.Typer(
    no_args_is_help=True, help="Text to units: the published model, and models of one's own."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the model.")]


@text_to_unit_app.command("import")
def import_published(
    checkpoint: Annotated[Path, typer.Argument(help="fairseq's text2unit.pt.")],
    spm: Annotated[Path, typer.Argument(help="The spm.model published beside it.")],
    inventory: Annotated[
        str,
        typer.Option(help="Inventory (id or folder) whose units it writes; the files don't say."),
    ],
    out: OutOption,
    dictionary: Annotated[
        Path | None, typer.Option(help="dict.unit.txt, to be compared with spm.model.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the published text-to-unit model one of this project; nothing in the file is run, fairseq isn't needed."""
    from speechgpt_lib.text_to_unit.synthesis import from_fairseq
    from speechgpt_lib.vocoder_cli import inventory_id

    made = from_fairseq(checkpoint, spm, inventory_id(inventory), dictionary)
    made.save(out)
    facts = {
        "folder": str(out),
        "units": made.vocabulary.unit_count,
        "pieces": made.vocabulary.size,
        "inventory": made.inventory,
    }
    print(
        json.dumps(facts)
        if as_json
        else f"{out}: {facts['units']} units of inventory {made.inventory}; use it with --text-to-unit {out}"
    )


@text_to_unit_app.command()
def train(
    units: Annotated[
        list[Path],
        typer.Argument(help="Folders that `speechgpt units extract` wrote, all of one inventory."),
    ],
    out: OutOption,
    recipe: Annotated[
        str,
        typer.Option(
            help="Whose `text_to_unit` section to follow: lab, release, or the path of a .yaml file."
        ),
    ] = "release",
    steps: Annotated[int | None, typer.Option(min=1, help="Default: as in the recipe.")] = None,
    pieces: Annotated[
        int | None,
        typer.Option(min=0, help="Size of the text tokenizer; default: as in the recipe."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    launched: Annotated[
        int, typer.Option(min=1, help="How many processes torchrun or accelerate launch starts.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a text-to-unit model on the transcripts and units of a corpus; killed at any point and started again, it goes on.

    On several GPUs: torchrun --nproc_per_node 8 -m speechgpt_lib.cli text-to-unit train … --launched 8
    """
    from speechgpt_lib.recipes.loading import load_recipe
    from speechgpt_lib.text_to_unit.corpus import train_on_units

    settings = load_recipe(recipe, seed).text_to_unit
    optimization = settings.optimization.model_copy(update={"steps": steps} if steps else {})
    settings = settings.model_copy(
        update={"optimization": optimization} | ({"pieces": pieces} if pieces is not None else {})
    )
    facts = train_on_units(
        units, settings, out, seed=seed, device=device, world_size=launched, say=_say
    )
    if facts:
        print(
            json.dumps(facts)
            if as_json
            else f"text-to-unit model in {out}: use it with --text-to-unit {out}"
        )


@text_to_unit_app.command()
def generate(
    texts: Annotated[
        list[str], typer.Argument(help="Texts, or - for one a line from standard input.")
    ],
    model: Annotated[
        Path | None, typer.Option("--text-to-unit", help="A folder made by train or import.")
    ] = None,
    run: Annotated[
        Path, typer.Option("--run", help="Otherwise: the run directory whose model to use.")
    ] = Path("runs/lab"),
    as_json: JsonOption = False,
) -> None:
    """Turn texts into units, a line each: `speechgpt text-to-unit generate "two dogs" | speechgpt speak - -o dogs.wav`."""
    from speechgpt_lib.runs.run import Run
    from speechgpt_lib.steps import TEXT_TO_UNIT
    from speechgpt_lib.text_to_unit.synthesis import TextToUnit
    from speechgpt_lib.units.sequence import format_units

    if texts == ["-"]:
        texts = [line.strip() for line in sys.stdin if line.strip()]
    if not texts:
        raise UserError("there is no text: give one or more, or lines on standard input")
    opened = TextToUnit.load(model or Run.open(run, say=_say).require(TEXT_TO_UNIT).path)
    made = opened.generate(texts)
    if as_json:
        print(
            json.dumps({"inventory": opened.inventory, "units": [units.tolist() for units in made]})
        )
        return
    for units in made:
        print(format_units(units))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
