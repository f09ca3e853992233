"""`speechgpt corpora list | prepare | download`: recorded speech from the archive to the utterance table."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
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


@commands.command("list")
def list_corpora(as_json: JsonOption = False) -> None:
    """List the corpora that can be read, and the archives that can be fetched."""
    from speechgpt_lib.corpora.archives import ARCHIVES
    from speechgpt_lib.corpora.catalogue import CORPORA

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
    if as_json:
        print(
            json.dumps(
                {"corpora": rows, "archives": [asdict(archive) for archive in ARCHIVES.values()]}
            )
        )
        return
    for row in rows:
        how = "by hand: the steps are printed by" if row["gated"] else "one of the archives below:"
        print(f"{row['corpus']}  ({row['title']})")
        print(
            f"  hours     {row['hours']}\n  licence   {row['licence']}\n  layout    {row['layout']}"
        )
        print(
            f"  get it    {how} speechgpt corpora download {row['corpus'] if row['gated'] else 'ARCHIVE -o DIR'}"
        )
    print("\narchive              hours      size  corpus")
    for archive in ARCHIVES.values():
        print(f"{archive.name:18} {archive.hours:>7}  {archive.size:>8}  {archive.corpus}")


@commands.command()
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
    """Read a corpus into an utterance table; what can't be used goes to quarantine. Interrupted, it goes on when called again."""
    from speechgpt_lib.corpora.prepare import prepare as prepare_corpus

    given = {
        "language": language,
        "lower": lower,
        "punctuation": False if no_punctuation else None,
        "whole_files": whole_files,
    }
    options = {
        name: value
        for name, value in given.items()
        if value not in (None, False) or name == "punctuation" and no_punctuation
    }
    say = (lambda line: print(line, file=sys.stderr)) if as_json else print
    settings = {
        "decode": decode,
        "max_bad_share": max_bad_share,
        "longest_s": longest,
        "workers": workers,
        "force": force,
    }
    summary = prepare_corpus(corpus, root, out, split or None, **settings, say=say, **options)
    if as_json:
        print(json.dumps(summary))
        return
    bad = summary["quarantined"]
    for name, counts in summary["splits"].items():
        print(f"{name:20} {counts['utterances']:>9} utterances {counts['hours']:>10.2f} h")
    print(
        f"{'quarantined':20} {bad['utterances']:>9}"
        + "".join(f"  {reason} {n}" for reason, n in bad["reasons"].items())
    )
    for reason, count in summary["skipped"].items():
        print(f"{reason:20} {count:>9}")
    print(f"wrote {summary['utterances']} utterances, {summary['hours']:.2f} h, to {out}")


@commands.command()
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
    """Fetch a public archive, check and unpack it; for a corpus that needs an agreement, print the steps. Interrupted, it resumes."""
    from speechgpt_lib.corpora.catalogue import CORPORA
    from speechgpt_lib.corpora.download import download as fetch
    from speechgpt_lib.corpora.download import find_archive

    corpus = CORPORA.get(archive)
    if corpus is not None and corpus.manual:
        text = f"{corpus.title} asks for an agreement first, so it can't be fetched from here. By hand:\n{corpus.manual}"
        print(json.dumps({"corpus": corpus.name, "manual": corpus.manual}) if as_json else text)
        return
    found = find_archive(archive)
    with _progress_bar(found.file) as progress:
        folder = fetch(
            found,
            out,
            keep_archive,
            say=lambda line: print(line, file=sys.stderr),
            progress=progress,
        )
    root = folder.parent
    text = f"{found.hours:g} h in {folder}\nnext: speechgpt corpora prepare {found.corpus} {root} -o TABLE --split {folder.name}"
    print(
        json.dumps({"folder": str(folder), "corpus": found.corpus, "root": str(root)})
        if as_json
        else text
    )


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
