"""A corpus on disk → the utterance table: shards of utterances, and a quarantine.

Rows are read in blocks, a block becomes a shard.  Until the end, `parts/` says for each shard which
block it holds and what was left out: a run that was killed goes on after the last block for which
both are there, and in the end the files are the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

from speechgpt_lib.corpora import tables
from speechgpt_lib.corpora.audio import BadAudio
from speechgpt_lib.corpora.catalogue import CORPORA, Names
from speechgpt_lib.corpora.readers import READERS
from speechgpt_lib.corpora.tables import PARTS, SUMMARY, Row, Skipped, Utterance
from speechgpt_lib.errors import UserError, reading, shortened
from speechgpt_lib.runs.artefacts import (
    escaped,
    hash_json,
    read_json,
    remove_half_written,
    write_json,
)
from speechgpt_lib.runs.stores import located

NO_FAULT = "not_speech"  # the reason that is counted, but neither bad nor in quarantine
SETTINGS, QUARANTINE = "settings.json", "quarantine.parquet"
GIVE_UP = 1000  # bad utterances from the first on: a corpus without its audio, don't look further


def read_rows(corpus: str, root: Path, split: Names, options: dict) -> Iterator[Row]:
    """The rows that the reader of `corpus` gives; `options` are its own, such as `lower`.

    Raises UserError: no such corpus, no such option, or another corpus there.
    """
    if corpus not in CORPORA:
        raise UserError(f"unknown corpus {corpus!r}: choose {', '.join(CORPORA)} (corpora list)")
    title = CORPORA[corpus].title
    known = sorted(set(inspect.signature(READERS[corpus]).parameters) - {"root", "split"})
    if unknown := ", ".join(sorted(set(options) - set(known))):
        raise UserError(f"{title} has no option {unknown}: there are {', '.join(known) or 'none'}")
    return map(_storable, READERS[corpus](root, split, **options))


def _storable(row: Row) -> Row:
    """The row, or why it can't stand in a table, whose text is UTF-8."""
    fields = row if isinstance(row, Skipped) else vars(row).values()
    text = "".join(field for field in fields if isinstance(field, str))
    why = "a name or text that is not UTF-8"
    safe = escaped(text) == text
    return row if safe else Skipped(escaped(row.path), escaped(row.id), "bad_row", why)


def prepare(
    corpus: str,
    root: Path | str,
    out: Path | str,
    split: Names = None,
    decode: bool = False,
    max_bad_share: float = 0.05,
    longest_s: float = tables.MAXIMUM_S,
    shard_size: int = 5000,
    workers: int = 1,
    force: bool = False,
    change: Callable[[Row], Row | None] = lambda row: row,
    say: Callable[[str], None] = lambda line: None,
    **options: object,
) -> dict:
    """Check every utterance of `corpus` in the folder `root`, write its table to `out`; a summary.

    decode: look at every sample too (finds silence, NaN, damage inside), not at headers only.
    max_bad_share: a greater share of bad utterances is an error.  A single one never is, so that
    tiny sets don't fail by it, unless the limit is 0 or nothing else is left.
    longest_s: utterances longer than this (s) are `too_long`.
    workers: threads that look at files.
    force: prepare again what is there (after a repair of the corpus).
    change: what becomes of each row that the reader gives; None leaves it out.
    Raises UserError: no such corpus there, other settings than before, or too many bad utterances.
    """
    root, out = located(root), Path(out).expanduser()
    rows = filter(None, map(change, read_rows(corpus, root, split, options)))
    first = next(rows, None)  # a folder of another corpus is refused before anything is written
    if first is None:
        what = "its layout and its lists are there, but in them no row of what is asked for"
        raise UserError(f"no utterance of {CORPORA[corpus].title} in {root}: {what}")
    splits = list(split) if isinstance(split, tuple) else split
    settings = {"corpus": corpus, "root": str(root.resolve()), "split": splits, "decode": decode}
    settings |= {"longest_s": longest_s, "shard_size": shard_size} | options
    _settle(out, settings, force)
    if (out / SUMMARY).is_file():
        say(f"{out} is prepared already; --force does it again")
        return read_json(out / SUMMARY)

    def check(row: Row) -> Row:
        try:
            with reading(row.path):
                if isinstance(row, Utterance):
                    return tables.check_segment(root, row, longest_s, decode)
        except UserError as bad:
            row = Skipped(row.path, row.id, "unreadable", str(bad))
            if isinstance(bad, BadAudio):
                row = row._replace(reason=bad.reason, detail=bad.detail)
            with contextlib.suppress(OSError, ValueError):  # a link: what is there stays there
                if not (root / row.path).resolve().is_relative_to(root.resolve()):
                    row = row._replace(reason="outside", detail=f"it lies outside of {root}")
        return Skipped(*(shortened(part, 300) for part in row))

    rows, parts, good, bad = chain([first], rows), [], 0, 0
    for number, block in enumerate(iter(lambda: list(islice(rows, shard_size)), [])):
        shard, part = out / f"utterances-{number:05d}.parquet", out / PARTS / f"{number:05d}.json"
        key = hash_json([repr(row) for row in block])
        made = read_json(part) if part.is_file() and shard.is_file() else {}
        if made.get("block") != key:  # not made yet, or the corpus' lists have changed since
            with ThreadPoolExecutor(workers) as pool:
                checked = list(pool.map(check, block))
            found = [row for row in checked if isinstance(row, Utterance)]
            skipped = [row._asdict() for row in checked if isinstance(row, Skipped)]
            faults = sum(row["reason"] != NO_FAULT for row in skipped)
            made = {"block": key, "good": len(found), "bad": faults, "skipped": skipped}
            tables.write_segments(shard, found, root.resolve())
            write_json(part, made)
            hours = sum(u.seconds for u in found) / 3600
            say(f"{shard.name}: {len(found)} utterances, {hours:.2f} h, {faults} in quarantine")
        parts.append(part)
        good, bad = good + made["good"], bad + made["bad"]
        if not good and bad >= GIVE_UP:
            break
    return _finish(out, parts, settings, max_bad_share)


def _settle(out: Path, settings: dict, force: bool) -> None:
    """Write down the settings, or compare them with those that `out` was prepared with."""
    path = out / SETTINGS
    if force:
        for old in (out / SUMMARY, out / QUARANTINE, path, *out.glob("utterances-*.parquet")):
            old.unlink(missing_ok=True)
        shutil.rmtree(out / PARTS, ignore_errors=True)
    if not path.is_file():
        write_json(path, settings)
    elif (before := read_json(path)) != settings:
        changed = [key for key in settings | before if settings.get(key) != before.get(key)]
        was = ", ".join(f"{key} {before.get(key)!r}, not {settings.get(key)!r}" for key in changed)
        cure = "give another folder, or --force to replace it"
        raise UserError(f"{out} was prepared with {was}: {cure}")


def _finish(out: Path, parts: list[Path], settings: dict, max_bad_share: float) -> dict:
    """Write quarantine and summary from what lies in `out`."""
    reasons, example, utterances, seconds, textless = Counter(), {}, Counter(), Counter(), 0

    def faults() -> Iterator[dict]:
        for row in (row for part in parts for row in read_json(part)["skipped"]):
            reasons[row["reason"]] += 1
            example.setdefault(row["reason"], f"{row['path']} ({row['detail']})")
            if row["reason"] != NO_FAULT:
                yield row

    tables.write_quarantine(out / QUARANTINE, faults())
    no_fault = {reason: reasons.pop(reason) for reason in {NO_FAULT} & set(reasons)}
    shards = [out / f"utterances-{part.stem}.parquet" for part in parts]
    for u in tables.read_utterances(out, shards=shards):
        utterances[u.split] += 1
        seconds[u.split] += u.seconds
        textless += not u.text
    bad, good, root = reasons.total(), utterances.total(), settings["root"]
    if not bad + good:
        raise UserError(f"no speech in {root}: every row is marked as something else")
    share = bad / (bad + good)
    if not good or share > max_bad_share and (bad > 1 or not max_bad_share):
        what = f"{bad} of {bad + good} utterances of {root} can't be used"
        what += f" ({share:.1%}, the limit is {max_bad_share:.1%})"
        reason, times = reasons.most_common(1)[0]
        often = f"most often {reason} ({times}), for example {example[reason]}"
        how = f"see {out / QUARANTINE}"
        if good:  # rounded up
            limit = -(-100 * bad // (bad + good)) / 100
            how += f", or go on with the rest: --max-bad-share {limit:.2f}"
        raise UserError(f"{what}; {often}: {how}")
    splits = {
        name: {"utterances": count, "hours": round(seconds[name] / 3600, 4)}
        for name, count in sorted(utterances.items())
    }
    faulty = {"utterances": bad, "share": round(share, 6), "reasons": dict(sorted(reasons.items()))}
    summary = {"settings": settings, "shards": len(shards), "utterances": good}
    summary |= {"hours": round(seconds.total() / 3600, 4), "without_text": textless}
    summary |= {"splits": splits, "quarantined": faulty, "skipped": no_fault}
    for stale in sorted(out.glob("utterances-*.parquet"))[len(shards) :]:  # of a longer list before
        stale.unlink()
    remove_half_written(out)
    write_json(out / SUMMARY, summary)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return summary
