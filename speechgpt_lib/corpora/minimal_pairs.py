"""Minimal pairs on disk: two recordings that differ in one thing, of which one is right.

Three layouts, in which the benchmarks of spoken language models are published:

    gold.csv, NAME.wav                        ZeroSpeech 2021: sWUGGY (words), sBLIMP (grammar)
    N_correct.wav, N_incorrect.wav            Spoken StoryCloze
    PART/sample_N_0.wav, …/sample_N_1.wav     SALMon; number 0 is the right one

A folder may hold several such folders, whose names become parts of the result.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechgpt_lib.corpora.tables import inside
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import read_text

SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
GOLD = "gold.csv"
LAYOUTS = "gold.csv, N_correct.wav and N_incorrect.wav, or sample_N_0.wav and sample_N_1.wav"


@dataclass(frozen=True)
class MinimalPair:
    """Paths, below the folder of the set, of the right recording and the wrong one.

    Pairs of one `item` say the same in several voices and count as one; `part` is what a result
    is broken down by, "" where there is nothing to break down.
    """

    right: str
    wrong: str
    item: str
    part: str


def read_pairs(folder: Path | str) -> list[MinimalPair]:
    """All pairs in a folder and the folders below it.

    Raises UserError: no pair of a known layout, a line of gold.csv that can't be read, a recording
    without its partner, recordings that are missing.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give that of a set of minimal pairs")
    below = sorted(p for p in root.rglob("*") if p.is_dir() and not p.name.startswith("."))
    found = [pair for place in (root, *below) for pair in _pairs_in(root, place)]
    if not found:
        raise UserError(f"no minimal pairs in {root}: expected {LAYOUTS}, there or in its folders")
    names = dict.fromkeys(name for pair in found for name in (pair.right, pair.wrong))
    if missing := [name for name in names if not inside(root, name).is_file()]:
        some = f"{len(missing)} of {len(names)} recordings are missing, first {missing[0]}"
        raise UserError(f"{root}: {some}: is the archive unpacked whole?")
    return found


def _pairs_in(root: Path, place: Path) -> Iterator[MinimalPair]:
    """The pairs of one folder; paths are relative to `root`."""
    at = place.relative_to(root).as_posix()
    prefix = "" if at == "." else f"{at}/"
    if (place / GOLD).is_file():
        yield from _zerospeech(place / GOLD, prefix)
        return
    groups: dict[str, dict[int, str]] = defaultdict(dict)
    for path in sorted(place.iterdir()):
        number, rank = _name(path)
        if rank is not None:
            groups[number][rank] = prefix + path.name
    for number, of in sorted(groups.items(), key=lambda pair: (len(pair[0]), pair[0])):
        if 0 not in of or len(of) < 2:
            lacks = "right" if 0 not in of else "wrong"
            what = f"{next(iter(of.values()))} has no {lacks} recording beside it"
            raise UserError(f"{root}: {what}: is the set whole?")
        wrong = (name for rank, name in sorted(of.items()) if rank)
        yield from (MinimalPair(of[0], name, prefix + number, prefix[:-1]) for name in wrong)


def _name(path: Path) -> tuple[str, int | None]:
    """Number of a pair and rank in it (0: the right one) by a file's name; None for another."""
    if path.suffix.lower() in SOUNDS:
        if match := re.fullmatch(r"(.+)_(in)?correct", path.stem):
            return match[1], 1 if match[2] else 0
        if match := re.fullmatch(r"sample_(\d+)_(\d+)", path.stem):
            return match[1], int(match[2])
    return "", None


def _zerospeech(path: Path, prefix: str) -> Iterator[MinimalPair]:
    """gold.csv: a line for each recording, with the id of its item, its voice, and whether it is
    correct; by frequency (sWUGGY) or type (sBLIMP) where it tells these."""
    groups: dict[tuple, dict[str, list[str]]] = defaultdict(lambda: {"0": [], "1": []})
    parts: dict[str, str] = {}  # of right recordings: a non-word has no frequency
    with reading(path, "get it again"):
        for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path))), start=2):
            lacks = [name for name in ("id", "filename", "correct") if not row.get(name)]
            if lacks or row["correct"] not in ("0", "1"):
                found = f"no {lacks[0]}" if lacks else f"correct is {row['correct'][:20]!r}"
                raise UserError(f"{path}, line {number}: {found}; expected id, filename, correct")
            name = f"{prefix}{row['filename'].removesuffix('.wav')}.wav"
            key = tuple(row.get(key) or "" for key in ("type", "subtype", "id", "voice"))
            groups[key][row["correct"]].append(name)
            if row["correct"] == "1":
                parts[name] = f"{prefix}{_part(row)}".strip("/")
    for (*item, voice), of in groups.items():
        if not of["0"] or not of["1"]:
            lacks = "right" if not of["1"] else "wrong"
            at = f"id {item[-1]}{f', voice {voice}' if voice else ''}"
            raise UserError(f"{path}: {at} has no {lacks} recording: is the file whole?")
        whole = prefix + "/".join(item)
        for right in of["1"]:
            yield from (MinimalPair(right, w, whole, parts[right]) for w in of["0"])


def _part(row: dict) -> str:
    if row.get("frequency") is not None:  # of the word in LibriSpeech, from which models learn
        return "in vocabulary" if float(row["frequency"] or 0) > 0 else "out of vocabulary"
    return row.get("type") or ""
