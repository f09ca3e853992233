"""`speechgpt corpora list | prepare | download`: recorded speech from the archive to the utterance
table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.cli.options import JsonOption, SetOption, emit, load, say

corpora_app = typer.Typer(help="Speech to train and test on.", no_args_is_help=True)

SplitOption = Annotated[
    list[str] | None,
    typer.Option("--split", help="Once or several times; see `corpora list`. Default: all."),
]
ShareOption = Annotated[
    float,
    typer.Option(
        "--max-bad-share", min=0, max=1, help="More bad utterances than this share are an error."
    ),
]


@corpora_app.command("list")
def list_corpora(as_json: JsonOption = False) -> None:
    """List the corpora that can be read, and the archives that can be fetched."""
    from speechgpt_lib.corpora.catalogue import ARCHIVES, CORPORA

    rows = [
        {
            "corpus": c.name,
            "title": c.title,
            "hours": c.hours,
            "licence": c.licence,
            "gated": c.manual is not None,
            "layout": c.layout,
        }
        for c in CORPORA.values()
    ]
    lines = []
    for row in rows:
        how = "by hand: the steps are printed by" if row["gated"] else "one of the archives below:"
        what = row["corpus"] if row["gated"] else "ARCHIVE -o DIR"
        lines.append(f"{row['corpus']}  ({row['title']})")
        lines += [f"  {name:9} {row[name]}" for name in ("hours", "licence", "layout")]
        lines.append(f"  get it    {how} speechgpt corpora download {what}")
    lines.append("\narchive              hours      size  corpus")
    lines += [f"{a.name:18} {a.hours:>7}  {a.size:>8}  {a.corpus}" for a in ARCHIVES.values()]
    archives = [archive._asdict() for archive in ARCHIVES.values()]
    emit({"corpora": rows, "archives": archives}, "\n".join(lines), as_json)


@corpora_app.command()
def prepare(
    corpus: Annotated[
        str,
        typer.Argument(
            help="librispeech, common_voice, gigaspeech, libri_light, lj_speech or vctk."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="The corpus' folder.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write: the utterance table.")
    ],
    split: SplitOption = None,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode", help="Look at every sample, not only at headers: finds silence and NaN."
        ),
    ] = False,
    max_bad_share: ShareOption = 0.05,
    longest: Annotated[
        float, typer.Option(min=0.1, help="Longer utterances (s) go to quarantine.")
    ] = 7200.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that look at files.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Do again what is there.")] = False,
    language: Annotated[
        list[str] | None, typer.Option("--language", help="Common Voice: only these languages.")
    ] = None,
    lower: Annotated[
        bool, typer.Option("--lower", help="GigaSpeech: text in small letters.")
    ] = False,
    no_punctuation: Annotated[
        bool, typer.Option("--no-punctuation", help="GigaSpeech: drop punctuation.")
    ] = False,
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="Libri-Light: don't cut at pauses.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read a corpus into an utterance table; what can't be used goes to quarantine. Interrupted, it
    goes on when called again."""
    from speechgpt_lib.corpora.prepare import prepare as prepare_corpus

    given = {"language": language, "lower": lower, "whole_files": whole_files}
    options = {name: value for name, value in given.items() if value}
    if no_punctuation:
        options["punctuation"] = False
    summary = prepare_corpus(
        corpus,
        root,
        out,
        split or None,
        decode=decode,
        max_bad_share=max_bad_share,
        longest_s=longest,
        workers=workers,
        force=force,
        say=say if as_json else print,
        **options,
    )
    bad = summary["quarantined"]
    lines = [
        f"{name:20} {counts['utterances']:>9} utterances {counts['hours']:>10.2f} h"
        for name, counts in summary["splits"].items()
    ]
    reasons = "".join(f"  {reason} {n}" for reason, n in bad["reasons"].items())
    lines.append(f"{'quarantined':20} {bad['utterances']:>9}{reasons}")
    lines += [f"{reason:20} {count:>9}" for reason, count in summary["skipped"].items()]
    lines.append(f"wrote {summary['utterances']} utterances, {summary['hours']:.2f} h, to {out}")
    emit(summary, "\n".join(lines), as_json)


@corpora_app.command()
def download(
    archive: Annotated[
        str, typer.Argument(help="Such as dev-clean or libri-light-small; see `corpora list`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to unpack into.")] = Path(
        "corpora"
    ),
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the .tar.gz as well.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a public archive, check and unpack it; for a corpus that needs an agreement, print the
    steps. Interrupted, it resumes."""
    from speechgpt_lib.corpora.catalogue import CORPORA
    from speechgpt_lib.corpora.download import download as fetch
    from speechgpt_lib.corpora.download import find_archive

    corpus = CORPORA.get(archive)
    if corpus is not None and corpus.manual:
        why = f"{corpus.title} asks for an agreement first, so it can't be fetched from here."
        text = f"{why} By hand:\n{corpus.manual}"
        emit({"corpus": corpus.name, "manual": corpus.manual}, text, as_json)
        return
    found = find_archive(archive)
    with _progress_bar(Path(found.url).name) as progress:
        folder = fetch(found, out, keep_archive, say=say, progress=progress)
    root = folder.parent
    command = f"speechgpt corpora prepare {found.corpus} {root} -o TABLE --split {folder.name}"
    text = f"{found.hours:g} h in {folder}\nnext: {command}"
    emit({"folder": str(folder), "corpus": found.corpus, "root": str(root)}, text, as_json)


@contextlib.contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with bytes, speed and time left in a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@corpora_app.command("sample")
def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many sentences.")] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    voice: Annotated[str | None, typer.Option(help="Default: the recipe's target voice.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="A kind of question, or statement; default all in turn.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="The recipe whose training sentences count as seen.")
    ] = "lab",
    changes: SetOption = None,
    any_sentence: Annotated[
        bool, typer.Option("--any", help="Also sentences of the training side.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write fresh test speech of the lab world: wavs and items.jsonl."""
    from speechgpt_lib.corpora.lab import sample_set

    settings, held_out = load(recipe, changes), not any_sentence
    records = sample_set(out, count, seed, settings, voice, kind, held_out=held_out)
    facts = {"folder": str(out), "items": len(records)}
    emit(facts, f"wrote {len(records)} sentences to {out}", as_json)
