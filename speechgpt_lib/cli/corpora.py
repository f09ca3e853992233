"""`speechgpt corpora list | prepare | download | sample | pairs`: recorded speech from the archive
to the utterance table; fresh sentences and minimal pairs of the lab world."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from speechgpt_lib.cli.options import AsJson, Changes, argument, emit, load, option, say

corpora_app = typer.Typer(help="Speech to train and test on.", no_args_is_help=True)


@corpora_app.command("list")
def list_corpora(as_json: AsJson = False) -> None:
    """List the corpora that can be read, and the archives that can be fetched."""
    from speechgpt_lib.corpora.catalogue import ARCHIVES, CORPORA

    corpora, lines = [], []
    for c in CORPORA.values():
        row = {"corpus": c.name, "title": c.title, "hours": c.hours, "licence": c.licence}
        corpora.append(row | {"gated": c.manual is not None, "layout": c.layout})
        how = "by hand: the steps are printed by" if c.manual else "one of the archives below:"
        command = f"speechgpt corpora download {c.name if c.manual else 'ARCHIVE -o DIR'}"
        lines += [f"{c.name}  ({c.title})", f"  hours     {c.hours}", f"  licence   {c.licence}"]
        lines += [f"  layout    {c.layout}", f"  get it    {how} {command}"]
    lines.append("\narchive              hours      size  corpus")
    lines += [f"{a.name:18} {a.hours:>7}  {a.size:>8}  {a.corpus}" for a in ARCHIVES.values()]
    archives = [archive._asdict() for archive in ARCHIVES.values()]
    emit({"corpora": corpora, "archives": archives}, "\n".join(lines), as_json)


@corpora_app.command()
def prepare(
    corpus: argument(str, "librispeech, common_voice, gigaspeech, libri_light, lj_speech or vctk."),
    root: argument(str, "The corpus' folder, or its address in an object store (s3://…)."),
    out: option(Path, "The folder to write: the utterance table.", "--out", "-o"),
    split: option(list[str] | None, "Repeatable; see `corpora list`. Default: all.") = None,
    decode: option(bool, "Look at samples, too: finds silence and NaN.", "--decode") = False,
    max_bad_share: option(float, "More bad ones than this share: an error.", min=0, max=1) = 0.05,
    longest: option(float, "Longer utterances (s) go to quarantine.", min=0.1) = 7200.0,
    workers: option(int, "Threads that look at files.", min=1) = 1,
    force: option(bool, "Do again what is there.", "--force") = False,
    language: option(list[str] | None, "Common Voice: only these languages.") = None,
    lower: option(bool, "GigaSpeech: text in small letters.", "--lower") = False,
    no_punctuation: option(bool, "GigaSpeech: drop punctuation.", "--no-punctuation") = False,
    whole_files: option(bool, "Libri-Light: don't cut at pauses.", "--whole-files") = False,
    as_json: AsJson = False,
) -> None:
    """Read a corpus into an utterance table; what can't be used goes to quarantine. Interrupted, it
    goes on when called again."""
    from speechgpt_lib.corpora.prepare import prepare as prepare_corpus

    given = {"decode": decode, "max_bad_share": max_bad_share, "longest_s": longest}
    given |= {"workers": workers, "force": force, "say": say if as_json else print}
    own = {"language": language, "lower": lower, "whole_files": whole_files}  # of some corpora
    given |= {name: value for name, value in own.items() if value}
    given |= {"punctuation": False} if no_punctuation else {}
    summary = prepare_corpus(corpus, root, out, split or None, **given)
    lines = [
        f"{name:20} {counts['utterances']:>9} utterances {counts['hours']:>10.2f} h"
        for name, counts in summary["splits"].items()
    ]
    bad = summary["quarantined"]
    reasons = "".join(f"  {reason} {n}" for reason, n in bad["reasons"].items())
    lines.append(f"{'quarantined':20} {bad['utterances']:>9}{reasons}")
    lines += [f"{reason:20} {count:>9}" for reason, count in summary["skipped"].items()]
    lines.append(f"wrote {summary['utterances']} utterances, {summary['hours']:.2f} h, to {out}")
    emit(summary, "\n".join(lines), as_json)


@corpora_app.command()
def download(
    archive: argument(str, "Such as dev-clean or libri-light-small; see `corpora list`."),
    out: option(Path, "The folder to unpack into.", "--out", "-o") = Path("corpora"),
    keep_archive: option(bool, "Keep the .tar.gz as well.", "--keep-archive") = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a public archive, check and unpack it; for a corpus that needs an agreement, print the
    steps. Interrupted, it resumes."""
    from speechgpt_lib.corpora import download as archives
    from speechgpt_lib.corpora.catalogue import CORPORA

    corpus = CORPORA.get(archive)
    if corpus is not None and corpus.manual:
        why = f"{corpus.title} asks for an agreement first, so it can't be fetched from here."
        text = f"{why} By hand:\n{corpus.manual}"
        return emit({"corpus": corpus.name, "manual": corpus.manual}, text, as_json)
    found = archives.find_archive(archive)
    with progress_bar(Path(found.url).name) as progress:
        folder = archives.download(found, out, keep_archive, say=say, progress=progress)
    root, split = (folder, "") if found.is_whole else (folder.parent, f" --split {folder.name}")
    command = f"speechgpt corpora prepare {found.corpus} {root} -o TABLE{split}"
    text = f"{found.hours:g} h in {folder}\nnext: {command}"
    emit({"folder": str(folder), "corpus": found.corpus, "root": str(root)}, text, as_json)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with bytes, speed and time left in a terminal, nothing elsewhere."""
    from rich import progress
    from rich.console import Console

    columns = ["{task.description}", progress.BarColumn(), progress.DownloadColumn()]
    columns += [progress.TransferSpeedColumn(), progress.TimeRemainingColumn()]
    console = Console(stderr=True)
    shown = {"console": console, "transient": True, "disable": not console.is_terminal}
    with progress.Progress(*columns, **shown) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@corpora_app.command()
def sample(
    out: option(Path, "The folder to write.", "--out", "-o"),
    count: option(int, "How many sentences.", "-n", min=1) = 50,
    seed: option(int, "Another one draws other sentences.", min=0) = 0,
    voice: option(str | None, "Default: the recipe's target voice.") = None,
    kind: option(str | None, "A kind of question, or statement; default all in turn.") = None,
    recipe: option(str, "The recipe whose training sentences count as seen.") = "lab",
    changes: Changes = None,
    any_sentence: option(bool, "Also sentences of the training side.", "--any") = False,
    as_json: AsJson = False,
) -> None:
    """Write fresh test speech of the lab world: wavs and items.jsonl."""
    from speechgpt_lib.corpora.lab import sample_set

    settings, held_out = load(recipe, changes), not any_sentence
    records = sample_set(out, count, seed, settings, voice, kind, held_out=held_out)
    facts = {"folder": str(out), "items": len(records)}
    emit(facts, f"wrote {len(records)} sentences to {out}", as_json)


@corpora_app.command()
def pairs(
    out: option(Path, "The folder to write.", "--out", "-o"),
    count: option(int, "How many of each kind.", "-n", min=1) = 80,
    seed: option(int, "Another one draws other pairs.", min=0) = 0,
    voice: option(str | None, "Default: the lab's target voice.") = None,
    as_json: AsJson = False,
) -> None:
    """Write minimal pairs of the lab world, in the published layouts, for `speechgpt pairs`."""
    from speechgpt_lib.corpora.lab_pairs import write_lab_pairs
    from speechgpt_lib.corpora.minimal_pairs import read_pairs
    from speechgpt_lib.corpora.speech import check_voice

    voice = voice or load("lab", None).lab.target_voice
    check_voice(voice)
    write_lab_pairs(out, count, seed, voice)
    made = len(read_pairs(out))
    emit({"folder": str(out), "pairs": made}, f"wrote {made} minimal pairs to {out}", as_json)
