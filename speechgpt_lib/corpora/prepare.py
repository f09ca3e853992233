"""A corpus on disk → the utterance table: shards of segments whose sound is there, a quarantine of the rest, and a summary.

Rows are read in blocks, a block becomes a shard.  Beside each shard lies, until the end, what the block gave besides (`parts/`):
a run that was killed goes on after the last block for which both are there, and in the end the files are the same, byte for byte.
"""

from __future__ import annotations

import inspect
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple
from itertools import islice
from pathlib import Path

from speechgpt_lib.corpora import (
    common_voice,
    gigaspeech,
    libri_light,
    librispeech,
    lj_speech,
    vctk,
)
from speechgpt_lib.corpora.catalogue import find_corpus
from speechgpt_lib.corpora.segments import MAXIMUM_S, Segment, Skipped, check_segment
from speechgpt_lib.corpora.sound_files import BadAudio
from speechgpt_lib.corpora.tables import write_quarantine, write_segments
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import hash_json, read_json, write_json

Row = Segment | Skipped
READERS = {
    "librispeech": librispeech.rows,
    "common_voice": common_voice.rows,
    "gigaspeech": gigaspeech.rows,
    "libri_light": libri_light.rows,
    "lj_speech": lj_speech.rows,
    "vctk": vctk.rows,
}
NO_FAULT = {"not_speech"}  # counted, but neither bad nor in quarantine
SETTINGS, SUMMARY, QUARANTINE = "settings.json", "summary.json", "quarantine.parquet"
GIVE_UP = 1000  # utterances, all of them bad from the first on: a corpus without its audio, and no need to look at the rest


def prepare(
    corpus: str,
    root: Path | str,
    out: Path | str,
    split: str | Sequence[str] | None = None,
    decode: bool = False,
    max_bad_share: float = 0.05,
    longest_s: float = MAXIMUM_S,
    shard_size: int = 5000,
    workers: int = 1,
    force: bool = False,
    change: Callable[[Row], Row | None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: object,
) -> dict:
    """Check every utterance of `corpus` in the folder `root` and write the table to `out`; returns the summary.

    Args:
        decode: look at every sample too (finds silence, NaN and damage inside a file), not only at headers and tails.
        max_bad_share: a greater share of bad utterances is an error.  A single bad one never is, so that tiny sets don't fail by
            it, unless the limit is 0 or nothing else is left.
        longest_s: utterances longer than this (s) are `too_long`.
        workers: threads that look at files; they don't change the result.
        force: prepare again what is there (after a repair of the corpus).
        change: what becomes of each row that the reader gives; None leaves it out.
        options: the reader's own, such as `lower` for GigaSpeech or `whole_files` for Libri-Light.

    Raises:
        UserError: no such corpus there, other settings than before, or too many bad utterances (says how to go on all the same).
    """
    title = find_corpus(corpus).title
    known = set(inspect.signature(READERS[corpus]).parameters) - {"root", "split"}
    if unknown := sorted(set(options) - known):
        raise UserError(
            f"{title} has no option {', '.join(unknown)}: there are {', '.join(sorted(known)) or 'none'}"
        )
    root, out = Path(root).expanduser(), Path(out).expanduser()
    settings = {"corpus": corpus, "root": str(root.resolve()), "split": split}
    settings |= {"decode": decode, "longest_s": longest_s, "shard_size": shard_size} | options
    settings = {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }
    rows = READERS[corpus](root, split, **options)
    rows = rows if change is None else filter(None, map(change, rows))
    first = next(rows, None)  # a folder of another corpus is refused before anything is written
    if first is None:
        raise UserError(
            f"no utterance of {title} in {root}: found its layout, but the lists there are empty"
        )
    if force:
        _clear(out)
    _same_settings(out, settings)
    if (out / SUMMARY).is_file():
        say(f"{out} is prepared already; --force does it again")
        return read_json(out / SUMMARY)

    def all_rows() -> Iterator[Segment | Skipped]:
        yield first
        yield from rows

    parts, good, bad = [], 0, 0
    stream = all_rows()
    while block := list(islice(stream, shard_size)):
        shard, part = _shard(out, len(parts)), out / "parts" / f"{len(parts):05d}.json"
        found = _finished(shard, part, block)
        if found is None:
            found = _make(shard, part, block, root, longest_s, decode, workers)
            say(
                f"{shard.name}: {found['utterances']} utterances, {found['seconds'] / 3600:.2f} h, {found['bad']} in quarantine"
            )
        parts.append(part)
        good, bad = good + found["utterances"], bad + found["bad"]
        if not good and bad >= GIVE_UP:
            break
    return _finish(out, parts, settings, max_bad_share)


def _make(
    shard: Path, part: Path, block: list, root: Path, longest_s: float, decode: bool, workers: int
) -> dict:
    """Look at the files of a block; write first what it gave besides, then its shard."""

    def check(row: Segment | Skipped) -> Segment | Skipped:
        if isinstance(row, Skipped):
            return row
        try:
            return check_segment(root, row, longest_s, decode)
        except BadAudio as bad:
            return Skipped(row.path, row.id, bad.reason, bad.detail)

    with ThreadPoolExecutor(workers) as pool:
        checked = list(pool.map(check, block))
    good = [row for row in checked if isinstance(row, Segment)]
    skipped = [row for row in checked if isinstance(row, Skipped)]
    splits: dict[str, list] = {}
    for row in good:
        count = splits.setdefault(row.split, [0, 0.0])
        count[0], count[1] = count[0] + 1, count[1] + row.seconds
    bad = [asdict(row) for row in skipped if row.reason not in NO_FAULT]
    found = {
        "block": _key(block),
        "rows": len(block),
        "utterances": len(good),
        "seconds": sum(row.seconds for row in good),
    }
    found |= {
        "without_text": sum(row.text is None for row in good),
        "splits": splits,
        "bad": len(bad),
        "quarantine": bad,
    }
    found |= {"no_fault": Counter(row.reason for row in skipped if row.reason in NO_FAULT)}
    write_json(part, found)
    write_segments(shard, good, root.resolve())
    return found


def _finished(shard: Path, part: Path, block: list) -> dict | None:
    """What is known of a block that was made before, unless the corpus' lists have changed since."""
    if not (shard.is_file() and part.is_file()):
        return None
    found = read_json(part)
    return found if found["block"] == _key(block) else None


def _finish(out: Path, parts: list[Path], settings: dict, max_bad_share: float) -> dict:
    counts, splits, reasons, no_fault, example = Counter(), {}, Counter(), Counter(), {}
    for found in map(read_json, parts):
        counts.update(
            {key: found[key] for key in ("rows", "utterances", "seconds", "without_text", "bad")}
        )
        no_fault.update(found["no_fault"])
        for row in found["quarantine"]:
            reasons[row["reason"]] += 1
            example.setdefault(row["reason"], f"{row['path']} ({row['detail']})")
        for name, (utterances, seconds) in found["splits"].items():
            before = splits.setdefault(name, [0, 0.0])
            before[0], before[1] = before[0] + utterances, before[1] + seconds
    write_quarantine(out / QUARANTINE, _quarantined(parts))
    total = counts["utterances"] + counts["bad"]
    share = counts["bad"] / total if total else 0.0
    allowed = max(max_bad_share * total, 1.0 if max_bad_share > 0 else 0.0)
    if counts["bad"] > allowed or not counts["utterances"]:
        _complain(out, settings, counts["bad"], total, max_bad_share, reasons, example)
    summary = {
        "settings": settings,
        "shards": len(parts),
        "utterances": counts["utterances"],
        "hours": _hours(counts["seconds"]),
    }
    summary |= {"without_text": counts["without_text"]}
    summary |= {
        "splits": {
            name: {"utterances": n, "hours": _hours(seconds)}
            for name, (n, seconds) in sorted(splits.items())
        }
    }
    summary |= {
        "quarantined": {
            "utterances": counts["bad"],
            "share": round(share, 6),
            "reasons": dict(sorted(reasons.items())),
        }
    }
    summary |= {"skipped": dict(sorted(no_fault.items()))}
    for stale in sorted(out.glob("utterances-*.parquet"))[len(parts) :]:  # of a longer list before
        stale.unlink()
    for killed in out.glob(".*.parquet.*"):  # temporary folders of writes that were killed
        shutil.rmtree(killed, ignore_errors=True)
    write_json(out / SUMMARY, summary)
    shutil.rmtree(out / "parts", ignore_errors=True)
    return summary


def _complain(
    out: Path, settings: dict, bad: int, total: int, limit: float, reasons: Counter, example: dict
) -> None:
    if not total:
        raise UserError(f"no speech in {settings['root']}: every row is marked as something else")
    reason, times = reasons.most_common(1)[0]
    how = f"see {out / QUARANTINE}"
    if bad < total:
        how += f", or go on with the rest: --max-bad-share {min(1.0, -(-100 * bad // total) / 100):.2f}"
    raise UserError(
        f"{bad} of {total} utterances of {settings['root']} can't be used ({bad / total:.1%}, the limit is {limit:.1%}); "
        f"most often {reason} ({times}), for example {example[reason]}: {how}"
    )


def _same_settings(out: Path, settings: dict) -> None:
    path = out / SETTINGS
    if path.is_file() and (before := read_json(path)) != settings:
        changed = [key for key in settings | before if settings.get(key) != before.get(key)]
        was = ", ".join(f"{key} {before.get(key)!r}, not {settings.get(key)!r}" for key in changed)
        raise UserError(
            f"{out} was prepared with {was}: give another folder, or --force to replace it"
        )
    if not path.is_file():
        write_json(path, settings)


def _clear(out: Path) -> None:
    for name in (SUMMARY, QUARANTINE, SETTINGS):
        (out / name).unlink(missing_ok=True)
    for shard in out.glob("utterances-*.parquet"):
        shard.unlink()
    shutil.rmtree(out / "parts", ignore_errors=True)


def _quarantined(parts: Iterable[Path]) -> Iterator[Skipped]:
    return (Skipped(**row) for part in parts for row in read_json(part)["quarantine"])


def _shard(out: Path, number: int) -> Path:
    return out / f"utterances-{number:05d}.parquet"


def _key(block: list[Segment | Skipped]) -> str:
    return hash_json([astuple(row) for row in block])


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 4)
