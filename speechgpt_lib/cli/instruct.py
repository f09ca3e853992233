"""`speechgpt instruct …`: build, check, count, export and import SpeechInstruct sets, and have task descriptions written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.errors import UserError

instruct_app = typer.Typer(
    no_args_is_help=True,
    help="SpeechInstruct: the sets that teach a language model to listen, speak and answer.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The folder for the set; several start from it again."),
]
UnitCount = Annotated[
    int | None, typer.Option("--unit-count", min=1, help="K: units must be below it.")
]
InventoryOption = Annotated[str | None, typer.Option(help="Inventory (id or folder) of the units.")]


@instruct_app.command()
def build(
    recipe: Annotated[
        str, typer.Option(help="smoke, lab, release, paper, or the path of a .yaml file.")
    ] = "lab",
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Without --units: the run directory [runs/<recipe>]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed than the recipe's.")] = None,
    units: Annotated[
        list[Path] | None,
        typer.Option(help="Folders that `units extract` wrote: make the cross-modal set of them."),
    ] = None,
    moss: Annotated[
        Path | None,
        typer.Option(
            help="moss-002-sft-data (file or folder): make the chain-of-modality set of it."
        ),
    ] = None,
    out: OutFolder = None,
    descriptions: Annotated[
        Path | None,
        typer.Option(help="A folder with asr.txt and tts.txt instead of our own descriptions."),
    ] = None,
    templates: Annotated[
        str | None, typer.Option(help="paper or release; default: as in the recipe.")
    ] = None,
    text_to_unit: Annotated[
        Path | None, typer.Option("--text-to-unit", help="Voice dialogues by this model (paper).")
    ] = None,
    synthesiser: Annotated[
        str | None,
        typer.Option(help="Or: espeak, or a command that writes {wav}; its units by --inventory."),
    ] = None,
    inventory: Annotated[
        Path | None, typer.Option(help="Folder of the inventory, for --synthesiser.")
    ] = None,
    classroom: Annotated[
        bool,
        typer.Option("--classroom", help="Leave out dialogues that are unsafe for classrooms."),
    ] = False,
    shards: Annotated[
        str | None, typer.Option(help="A:B or K::N of the unit tables, for the jobs of an array.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build the sets of a recipe: of a run directory, of corpora (--units), or of written dialogues (--moss).

    What a run lacks before them is made first.  Stopped at any point and started again, it goes on.
    """
    from speechgpt_lib.recipes.loading import load_recipe

    settings = load_recipe(recipe, seed)
    if templates is not None:
        if templates not in ("paper", "release"):
            raise UserError(f"unknown templates {templates!r}: choose paper or release")
        shares = (
            {"speech_speech": 1.0} if templates == "release" else settings.instructions.chain_shares
        )
        update = {"templates": templates, "chain_shares": shares}
        settings = settings.model_copy(
            update={"instructions": settings.instructions.model_copy(update=update)}
        )
    if units and moss:
        raise UserError("--units and --moss make two different sets: call build once for each")
    if units or moss:
        if out is None:
            raise UserError("name the folder for the set: --out DIR")
        if units:
            summary = _build_cross_modal(settings, units, out, descriptions, shards, as_json)
        else:
            summary = _build_chain(
                settings, moss, out, text_to_unit, synthesiser, inventory, classroom
            )
        print(json.dumps(summary) if as_json else _overview(summary, out))
        return
    _build_run(settings, run_dir or Path("runs") / settings.name, as_json)


@instruct_app.command()
def check(
    source: Annotated[
        Path, typer.Argument(help="A .jsonl file (ours or the released), or the folder of a set.")
    ],
    unit_count: UnitCount = None,
    inventory: InventoryOption = None,
    shown: Annotated[
        int, typer.Option("--show", min=0, help="Lines to print of each kind of fault.")
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Report every row that is not well-formed, with line number and reason; exit code 1 if there is one."""
    from speechgpt_lib.instructions.check import check_set
    from speechgpt_lib.instructions.interchange import check_jsonl

    if source.is_dir():
        problems = check_set(source, _identity(inventory))
        for problem in problems:
            print(problem, file=sys.stderr if as_json else sys.stdout)
        print(
            json.dumps({"problems": problems})
            if as_json
            else f"{source}: {len(problems) or 'no'} problems"
        )
        raise typer.Exit(bool(problems))
    counts: dict[str, int] = {}

    def tell(line, error) -> None:
        counts[error.reason] = counts.get(error.reason, 0) + 1
        if counts[error.reason] <= shown:
            print(f"{source}:{line.number}: {error}", file=sys.stderr if as_json else sys.stdout)

    found = check_jsonl(source, unit_count or _unit_count(inventory), tell)
    result = {
        "lines": found.lines,
        "good": found.good,
        "bad": found.bad,
        "reasons": dict(found.reasons),
    }
    result |= {
        "templates": dict(found.templates),
        "prefixes": dict(found.prefixes),
        "tasks": dict(found.statistics.groups),
    }
    if as_json:
        print(json.dumps(result))
    else:
        for reason, count in found.reasons.most_common():
            print(
                f"{reason:20} {count:>9}"
                + (f"  ({count - shown} more lines than shown)" if count > shown else "")
            )
        tasks = ", ".join(
            f"{name} {count}" for name, count in sorted(found.statistics.groups.items())
        )
        print(f"{found.lines} lines, {found.good} well-formed ({tasks or 'none'}), {found.bad} not")
        if found.prefixes.get("another"):
            print(
                f"note: {found.prefixes['another']} rows have another prefix than the release's: it is part of what the model learns"
            )
    raise typer.Exit(bool(found.bad))


@instruct_app.command()
def stats(
    source: Annotated[Path, typer.Argument(help="The folder of a set, or a .jsonl file.")],
    unit_count: UnitCount = None,
    as_json: JsonOption = False,
) -> None:
    """Rows a task or format, lengths in units and words with histograms, sources, licences: the data card of a set."""
    from speechgpt_lib.instructions.card import render
    from speechgpt_lib.instructions.interchange import summarise_jsonl
    from speechgpt_lib.instructions.sets import read_summary

    summary = read_summary(source) if source.is_dir() else summarise_jsonl(source, unit_count)
    print(json.dumps(summary) if as_json else render(summary), end="\n" if as_json else "")


@instruct_app.command()
def export(
    source: Annotated[Path, typer.Argument(help="The folder of a set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .jsonl file to write.")],
    templates: Annotated[
        str | None, typer.Option(help="paper or release; default: the set's own.")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="The held-out rows instead of the training rows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a set as the release writes it: JSON lines with `prefix` and `plain_text`."""
    from speechgpt_lib.instructions.interchange import export_jsonl

    done = export_jsonl(source, out, templates, part="held_out" if held_out else "rows")
    print(json.dumps(done) if as_json else f"wrote {done['rows']} rows to {out}")


@instruct_app.command("import")
def import_set(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl file with `prefix` and `plain_text`, such as the released ones."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the set.")],
    inventory: Annotated[
        str, typer.Option(help="Inventory (id or folder) of its units; the file doesn't say.")
    ],
    unit_count: Annotated[
        int | None,
        typer.Option("--unit-count", min=1, help="K, where --inventory is no folder [1000]."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read JSON lines into a set, from which the same bytes can be exported; bad lines go to quarantine."""
    from speechgpt_lib.instructions.interchange import import_jsonl

    identity = _identity(inventory)
    summary = import_jsonl(source, out, identity, unit_count or _unit_count(inventory) or 1000)
    print(json.dumps(summary) if as_json else _overview(summary, out))


@instruct_app.command()
def describe(
    task: Annotated[str, typer.Argument(help="asr or tts.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The text file to write, a description a line.")
    ],
    model: Annotated[
        str, typer.Option(help="The model to ask, by the name that the endpoint knows.")
    ],
    base_url: Annotated[
        str | None,
        typer.Option(help="The endpoint; default: OPENAI_BASE_URL, or the client's own."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Default: OPENAI_API_KEY, where others don't see it.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="asr, tts, or tts_seed: the paper's, which asks for recognition by mistake."
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 100,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a request may take.")] = 60.0,
    price_in: Annotated[
        float | None,
        typer.Option(min=0, help="Price of a million prompt tokens, to print the cost."),
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens of answers.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have a language model write task descriptions, as the paper had GPT-4 do; stopped and started again, it goes on."""
    from speechgpt_lib.instructions.chat_server import ChatServer
    from speechgpt_lib.instructions.description_writer import write_descriptions

    facts = write_descriptions(
        task,
        out,
        ChatServer(model, base_url, key, temperature, timeout, say=_say),
        prompt=prompt,
        count=count,
        price_in=price_in,
        price_out=price_out,
    )
    print(json.dumps(facts) if as_json else f"wrote {count} descriptions to {out}")


# --- helpers ------------------------------------------------------------------------------------------------------------------------
def _build_run(recipe, folder: Path, as_json: bool) -> None:
    """The sets of a run directory, with whatever they need."""
    import transformers

    from speechgpt_lib import pipeline
    from speechgpt_lib.runs.run import Run

    if recipe.needs:
        missing = "; ".join(recipe.needs)
        raise UserError(
            f"recipe {recipe.name} can't be run here as a whole (it needs: {missing}); build its sets by --units or --moss"
        )
    transformers.logging.set_verbosity_error()
    run = Run.create(folder, recipe, say=_say)
    before = (
        pipeline.make_corpus,
        pipeline.make_hubert,
        pipeline.make_inventory,
        pipeline.make_units,
    )
    for make in (
        *before,
        pipeline.make_cross_modal_set,
        pipeline.make_text_to_unit,
        pipeline.make_chain_set,
    ):
        step = make(run)
        if make in (pipeline.make_cross_modal_set, pipeline.make_chain_set):
            facts = {
                "folder": str(step.path),
                **{k: step.metrics[k] for k in ("rows", "held_out", "table_hash")},
            }
            print(
                json.dumps(facts)
                if as_json
                else f"{step.path}: {facts['rows']} rows, table hash {facts['table_hash'][:16]}…"
            )


def _build_cross_modal(
    recipe, units: list[Path], out: Path, descriptions: Path | None, shards: str | None, quiet: bool
) -> dict:
    from speechgpt_lib.instructions.card import source_facts
    from speechgpt_lib.instructions.cross_modal import Pairing, build_cross_modal
    from speechgpt_lib.instructions.descriptions import read_descriptions
    from speechgpt_lib.runs.artefacts import read_json
    from speechgpt_lib.units_cli import shard_slice

    settings = recipe.instructions
    lists = (
        {task: read_descriptions(descriptions / f"{task}.txt") for task in ("asr", "tts")}
        if descriptions
        else None
    )
    pairing = Pairing(
        seed=recipe.seed,
        pairing=settings.pairing,
        held_out_share=settings.held_out_share,
        templates=settings.templates,
        descriptions=lists,
    )
    facts = read_json(units[0] / "inventory" / "inventory.json")
    sources = []
    for folder in units:
        summary = folder / "utterances" / "summary.json"
        name = read_json(summary)["settings"]["corpus"] if summary.is_file() else folder.name
        sources.append(source_facts(name, folder))
    with _rows_bar(quiet) as on_rows:
        return build_cross_modal(
            units,
            out,
            pairing,
            inventory_id=facts["id"],
            unit_count=facts["clusters"],
            shards=shard_slice(shards, 0, 1),
            source_facts=[*sources, *([] if lists else [source_facts("descriptions")])],
            on_rows=on_rows,
        )


def _build_chain(
    recipe,
    moss: Path,
    out: Path,
    text_to_unit: Path | None,
    synthesiser: str | None,
    inventory: Path | None,
    classroom: bool,
) -> dict:
    from speechgpt_lib.instructions.card import source_facts
    from speechgpt_lib.instructions.chain import build_chain
    from speechgpt_lib.instructions.classroom import Filter
    from speechgpt_lib.instructions.moss import Report, read_moss, select
    from speechgpt_lib.instructions.sets import SetFacts
    from speechgpt_lib.text_to_unit.speech import speech_voicing
    from speechgpt_lib.text_to_unit.synthesis import TextToUnit
    from speechgpt_lib.units.foreign import open_inventory

    if (text_to_unit is None) == (synthesiser is None):
        raise UserError(
            "say what voices the dialogues: --text-to-unit DIR (the paper's way), or --synthesiser with --inventory DIR"
        )
    if text_to_unit is not None:
        voicing = TextToUnit.load(text_to_unit)
        unit_count = voicing.vocabulary.unit_count
    else:
        if inventory is None:
            raise UserError(
                "--synthesiser needs --inventory DIR: the units of what it says are extracted with it"
            )
        opened = open_inventory(inventory, None, None, None)
        voicing, unit_count = (
            speech_voicing(synthesiser, opened, recipe.corpus.target_voice),
            opened.count,
        )
    settings, report = recipe.instructions, Report()
    samples = select(
        read_moss(moss, report),
        maximum_words=settings.maximum_response_words,
        classroom=Filter.load() if classroom else None,
        report=report,
    )
    return build_chain(
        samples,
        out,
        voicing,
        voicing,
        settings.chain_shares,
        recipe.seed,
        SetFacts("chain", voicing.inventory, unit_count, settings.templates),
        held_out_share=settings.held_out_share,
        sources=[source_facts("moss", moss)],
        selection=report.funnel,
        on_rows=lambda rows: _say(f"{rows} dialogues more"),
    )


def _overview(summary: dict, out: Path) -> str:
    statistics = summary["statistics"]
    tasks = ", ".join(f"{name} {count}" for name, count in statistics["counts"].items())
    lines = [
        f"{out}: shards {summary['shards']}, {statistics['rows']} rows ({tasks}), {summary['held_out']} held out"
    ]
    lines += [f"quarantined: {reason} {count}" for reason, count in summary["quarantined"].items()]
    return "\n".join([*lines, f"table hash {summary['table_hash']}"])


def _rows_bar(quiet: bool):
    import contextlib

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    @contextlib.contextmanager
    def bar():
        console = Console(stderr=True)
        columns = (TextColumn("{task.completed:,} rows"), BarColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=console, transient=True, disable=quiet or not console.is_terminal
        ) as progress:
            task = progress.add_task("rows", total=None)
            yield lambda rows: progress.update(task, advance=rows)

    return bar()


def _identity(inventory: str | None) -> str | None:
    from speechgpt_lib.vocoder_cli import inventory_id

    return inventory_id(inventory)


def _unit_count(inventory: str | None) -> int | None:
    """K of an inventory that is given by its folder."""
    from speechgpt_lib.vocoder_cli import inventory_facts

    return (
        int(inventory_facts(Path(inventory))["clusters"])
        if inventory is not None and Path(inventory).is_dir()
        else None
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
