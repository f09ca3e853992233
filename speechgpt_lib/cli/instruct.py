"""`speechgpt instruct …`: build, check, count, export and import SpeechInstruct sets; have task
descriptions written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.cli.options import (
    JsonOption,
    emit,
    say,
)
from speechgpt_lib.cli.runs import add_step_command

instruct_app = typer.Typer(
    no_args_is_help=True,
    help="SpeechInstruct: the sets that teach a language model to listen, speak and answer.",
)

UnitCount = Annotated[
    int | None, typer.Option("--unit-count", min=1, help="K: units must be below it.")
]
InventoryOption = Annotated[str | None, typer.Option(help="Inventory (id or folder) of the units.")]


add_step_command(
    instruct_app,
    "build",
    "Build the sets of a recipe and what they need",
    "cross_modal_set",
    "chain_set",
)


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
    """Report every row that is not well-formed, with line number and reason; exit code 1 if there
    is one."""
    from speechgpt_lib.instructions.interchange import check_jsonl
    from speechgpt_lib.instructions.sets import check_set
    from speechgpt_lib.units.foreign import inventory_count, inventory_id

    if source.is_dir():
        problems = check_set(source, inventory_id(inventory))
        for problem in problems:
            print(problem, file=sys.stderr if as_json else sys.stdout)
        text = f"{source}: {len(problems) or 'no'} problems"
        emit({"problems": problems}, text, as_json)
        raise typer.Exit(bool(problems))
    counts: dict[str, int] = {}

    def tell(line, error) -> None:
        counts[error.reason] = counts.get(error.reason, 0) + 1
        if counts[error.reason] <= shown:
            print(f"{source}:{line.number}: {error}", file=sys.stderr if as_json else sys.stdout)

    found = check_jsonl(source, unit_count or inventory_count(inventory), tell)
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
        emit(result, "", True)
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
            other = f"{found.prefixes['another']} rows have another prefix than the release's"
            print(f"note: {other}: it is part of what the model learns")
    raise typer.Exit(bool(found.bad))


@instruct_app.command()
def stats(
    source: Annotated[Path, typer.Argument(help="The folder of a set, or a .jsonl file.")],
    unit_count: UnitCount = None,
    as_json: JsonOption = False,
) -> None:
    """Rows a task or format, lengths in units and words with histograms, sources, licences: the
    data card of a set."""
    from speechgpt_lib.instructions.card import render
    from speechgpt_lib.instructions.interchange import summarise_jsonl
    from speechgpt_lib.instructions.sets import read_summary

    summary = read_summary(source) if source.is_dir() else summarise_jsonl(source, unit_count)
    emit(summary, render(summary).rstrip("\n"), as_json)


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
    emit(done, f"wrote {done['rows']} rows to {out}", as_json)


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
    """Read JSON lines into a set, from which the same bytes can be exported; bad lines go to
    quarantine."""
    from speechgpt_lib.instructions.interchange import import_jsonl
    from speechgpt_lib.units.foreign import inventory_count, inventory_id

    identity = inventory_id(inventory)
    summary = import_jsonl(source, out, identity, unit_count or inventory_count(inventory) or 1000)
    emit(summary, _overview(summary, out), as_json)


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
    """Have a language model write task descriptions, as the paper had GPT-4 do; stopped and started
    again, it goes on."""
    from speechgpt_lib.instructions.chat_server import ChatServer
    from speechgpt_lib.instructions.description_writer import write_descriptions

    facts = write_descriptions(
        task,
        out,
        ChatServer(model, base_url, key, temperature, timeout, say=say),
        prompt=prompt,
        count=count,
        price_in=price_in,
        price_out=price_out,
    )
    emit(facts, f"wrote {count} descriptions to {out}", as_json)


def _overview(summary: dict, out: Path) -> str:
    statistics = summary["statistics"]
    tasks = ", ".join(f"{name} {count}" for name, count in statistics["counts"].items())
    lines = [
        f"{out}: shards {summary['shards']}, {statistics['rows']} rows ({tasks}), "
        f"{summary['held_out']} held out"
    ]
    lines += [f"quarantined: {reason} {count}" for reason, count in summary["quarantined"].items()]
    return "\n".join([*lines, f"table hash {summary['table_hash']}"])
