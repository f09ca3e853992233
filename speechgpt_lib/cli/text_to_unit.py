"""`speechgpt text-to-unit …`: fairseq's text-to-unit model made ours, one trained on a corpus, and
texts to units."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from speechgpt_lib.cli.options import LAB, AsJson, RunPath, argument, emit, open_run, option
from speechgpt_lib.cli.runs import add_step_command
from speechgpt_lib.errors import UserError

text_to_unit_app = typer.Typer(
    no_args_is_help=True, help="Text to units: the published model, and models of one's own."
)


@text_to_unit_app.command("import")
def import_published(
    checkpoint: argument(Path, "fairseq's text2unit.pt."),
    spm: argument(Path, "The spm.model published beside it."),
    inventory: option(str, "Inventory (id or folder) whose units it writes; the files don't say."),
    out: option(Path, "Folder for the model.", "--out", "-o"),
    dictionary: option(Path | None, "dict.unit.txt, to be compared with spm.model.") = None,
    as_json: AsJson = False,
) -> None:
    """Make the published text-to-unit model one of this project; nothing in the file is run,
    fairseq isn't needed."""
    from speechgpt_lib.text_to_unit.synthesis import from_fairseq
    from speechgpt_lib.units.foreign import inventory_id

    made = from_fairseq(checkpoint, spm, inventory_id(inventory), dictionary)
    made.save(out)
    units, pieces = made.vocabulary.unit_count, made.vocabulary.processor.get_piece_size()
    facts = {"folder": str(out), "units": units, "pieces": pieces}
    what = f"{units} units of inventory {made.inventory}"
    text = f"{out}: {what}; use it with --text-to-unit {out}"
    emit(facts | {"inventory": made.inventory}, text, as_json)


WHAT = "Train on the transcripts and units of a recipe's corpora"
add_step_command(text_to_unit_app, "train", WHAT, "text_to_unit")


@text_to_unit_app.command()
def generate(
    texts: argument(list[str], "Texts, or - for one a line from standard input."),
    model: option(Path | None, "A folder made by train or import.", "--text-to-unit") = None,
    run: RunPath = LAB,
    as_json: AsJson = False,
) -> None:
    """Turn texts into units, a line each: `speechgpt text-to-unit generate "two dogs" | speechgpt
    speak - -o dogs.wav`."""
    from speechgpt_lib.text_to_unit.synthesis import TextToUnit
    from speechgpt_lib.units.sequence import format_units

    if texts == ["-"]:
        texts = [said for line in sys.stdin if (said := line.lstrip("\ufeff").strip())]
    if not texts:
        raise UserError("there is no text: give one or more, or lines on standard input")
    opened = TextToUnit.load(model or open_run(run, quiet=True).require("text_to_unit").path)
    made = opened.generate(texts)
    result = {"inventory": opened.inventory, "units": [units.tolist() for units in made]}
    emit(result, "\n".join(map(format_units, made)), as_json)
