"""`speechgpt instruct …`: build, check, count, export and import SpeechInstruct sets; have task
descriptions written."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import typer

from speechgpt_lib.cli.options import AsJson, argument, emit, option, say
from speechgpt_lib.cli.runs import add_step_command

instruct_app = typer.Typer(
    no_args_is_help=True,
    help="SpeechInstruct: the sets that teach a language model to listen, speak and answer.",
)
UnitCount = option(int | None, "K: units must be below it.", "--unit-count", min=1)
WHAT = "Build the sets of a recipe and what they need"
add_step_command(instruct_app, "build", WHAT, "cross_modal_set", "chain_set")


@instruct_app.command()
def check(
    source: argument(Path, "A .jsonl file (ours or the released), or the folder of a set."),
    unit_count: UnitCount = None,
    inventory: option(str | None, "Inventory (id or folder) of the units.") = None,
    shown: option(int, "Lines to print of each kind of fault.", "--show", min=0) = 20,
    as_json: AsJson = False,
) -> None:
    """Report every row that is not well-formed, with line number and reason; exit code 1 if there
    is one."""
    from speechgpt_lib.instructions.interchange import check_jsonl
    from speechgpt_lib.instructions.sets import check_set
    from speechgpt_lib.units.foreign import inventory_count, inventory_id

    faults = sys.stderr if as_json else sys.stdout
    if source.is_dir():
        problems = check_set(source, inventory_id(inventory))
        for problem in problems:
            print(problem, file=faults)
        emit({"problems": problems}, f"{source}: {len(problems) or 'no'} problems", as_json)
        raise typer.Exit(bool(problems))
    told: Counter = Counter()

    def tell(line, error) -> None:
        told[error.reason] += 1
        if told[error.reason] <= shown:
            print(f"{source}:{line.number}: {error}", file=faults)

    found = check_jsonl(source, unit_count or inventory_count(inventory), tell)
    tasks = found.statistics.groups
    result = {"lines": found.lines, "good": found.good, "bad": found.bad, "reasons": found.reasons}
    result |= {"templates": found.templates, "prefixes": found.prefixes, "tasks": tasks}
    lines = []
    for reason, count in found.reasons.most_common():
        more = f"  ({count - shown} more lines than shown)" if count > shown else ""
        lines.append(f"{reason:20} {count:>9}{more}")
    names = ", ".join(f"{name} {count}" for name, count in sorted(tasks.items())) or "none"
    lines.append(f"{found.lines} lines, {found.good} well-formed ({names}), {found.bad} not")
    if other := found.prefixes.get("another"):
        what = "have another prefix than the release's: it is part of what the model learns"
        lines.append(f"note: {other} rows {what}")
    emit(result, "\n".join(lines), as_json)
    raise typer.Exit(bool(found.bad))


@instruct_app.command()
def stats(
    source: argument(Path, "The folder of a set, or a .jsonl file."),
    unit_count: UnitCount = None,
    as_json: AsJson = False,
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
    source: argument(Path, "The folder of a set."),
    out: option(Path, "The .jsonl file to write.", "--out", "-o"),
    templates: option(str | None, "paper or release; default: the set's own.") = None,
    held_out: option(bool, "The held-out rows, not the training rows.", "--held-out") = False,
    as_json: AsJson = False,
) -> None:
    """Write a set as the release writes it: JSON lines with `prefix` and `plain_text`."""
    from speechgpt_lib.instructions.interchange import export_jsonl

    done = export_jsonl(source, out, templates, part="held_out" if held_out else "rows")
    emit(done, f"wrote {done['rows']} rows to {out}", as_json)


@instruct_app.command("import")
def import_set(
    source: argument(Path, "A .jsonl file with `prefix` and `plain_text`, such as the released."),
    out: option(Path, "The folder for the set.", "--out", "-o"),
    inventory: option(str, "Inventory (id or folder) of its units; the file doesn't say."),
    unit_count: option(int | None, "K, where --inventory is no folder [1000].", min=1) = None,
    as_json: AsJson = False,
) -> None:
    """Read JSON lines into a set, from which the same bytes can be exported; bad lines go to
    quarantine."""
    from speechgpt_lib.instructions.interchange import import_jsonl
    from speechgpt_lib.units.foreign import inventory_count, inventory_id

    identity = inventory_id(inventory)
    summary = import_jsonl(source, out, identity, unit_count or inventory_count(inventory) or 1000)
    statistics = summary["statistics"]
    tasks = ", ".join(f"{name} {count}" for name, count in statistics["counts"].items())
    rows = f"{statistics['rows']} rows ({tasks}), {summary['held_out']} held out"
    lines = [f"{out}: shards {summary['shards']}, {rows}"]
    lines += [f"quarantined: {reason} {count}" for reason, count in summary["quarantined"].items()]
    emit(summary, "\n".join([*lines, f"table hash {summary['table_hash']}"]), as_json)


@instruct_app.command()
def describe(
    task: argument(str, "asr or tts."),
    out: option(Path, "The text file to write, a description a line.", "--out", "-o"),
    model: option(str, "The model to ask, by the name that the endpoint knows."),
    base_url: option(str | None, "Default: OPENAI_BASE_URL, or the client's own.") = None,
    key: option(str | None, "Default: OPENAI_API_KEY, where others don't see it.") = None,
    prompt: option(str | None, "asr, tts or tts_seed: the paper's, which asks for asr.") = None,
    count: option(int, "How many.", "-n", min=1) = 100,
    temperature: option(float, "Of the sampling.", min=0) = 1.0,
    timeout: option(float, "Seconds a request may take.", min=1) = 60.0,
    price_in: option(float | None, "Of a million prompt tokens, to print the cost.", min=0) = None,
    price_out: option(float | None, "Of a million tokens of answers.", min=0) = None,
    as_json: AsJson = False,
) -> None:
    """Have a language model write task descriptions, as the paper had GPT-4 do; stopped and started
    again, it goes on."""
    from speechgpt_lib.instructions.chat_server import ChatServer
    from speechgpt_lib.instructions.description_writer import write_descriptions

    server = ChatServer(model, base_url, key, temperature, timeout, say=say)
    given = {"prompt": prompt, "count": count, "price_in": price_in, "price_out": price_out}
    facts = write_descriptions(task, out, server, **given)
    emit(facts, f"wrote {count} descriptions to {out}", as_json)
