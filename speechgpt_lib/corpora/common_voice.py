"""Common Voice: `clips/*.mp3` and one TSV a split → segments, line by line.

The TSV files are no CSV: a tab ends a field and a quotation mark means nothing, however many there
are (sentences with a single one occur, and a CSV reader would swallow the lines up to the next).
Columns are found by name: releases have 8 to 13 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from speechgpt_lib.corpora.catalogue import language_folders, require_corpus
from speechgpt_lib.corpora.lists import Names, chosen_splits, files, text_lines
from speechgpt_lib.corpora.segments import Row, Segment, Skipped
from speechgpt_lib.errors import UserError

RATE = 48_000  # Hz, of most clips; older ones differ, the file's header knows
DEFAULT = ("train", "dev", "test")
_NO_SPLIT = {"clip_durations", "reported", "times", "unvalidated_sentences", "validated_sentences"}


def rows(root: Path | str, split: Names = None, language: Names = None) -> Iterator[Row]:
    """Utterances in the order of the lists.

    root: the folder of one language, or of a release with one folder a language.
    split: names of TSV files (train, dev, test, validated, other, invalidated); None is the first
    three.  `validated` contains these and can't be asked for beside them.
    language: folders to read, such as en; None is all that are there.
    """
    root = require_corpus(root, "common_voice")
    languages = language_folders(root)
    if languages != ["."]:
        languages = chosen_splits(language, [name for name in languages if name != "."], root)
    for name in languages:
        for chosen in _lists(root / name, split):
            yield from _read(root, name, chosen)


def _lists(place: Path, split: Names) -> list[str]:
    there = {file.removesuffix(".tsv") for file in files(place, ".tsv")} - _NO_SPLIT
    usual = [name for name in DEFAULT if name in there]
    asked = usual if split is None else split
    chosen = chosen_splits(asked, [*usual, *sorted(there - set(DEFAULT))], place)
    twice = ", ".join(name for name in usual if name in chosen)
    if "validated" in chosen and twice:
        cure = "ask for it, or for the others, not for both"
        raise UserError(f"validated already contains {twice} of {place}: {cure}")
    return chosen


def _read(root: Path, folder: str, split: str) -> Iterator[Row]:
    inner = "" if folder == "." else f"{folder}/"
    tsv = f"{inner}{split}.tsv"
    lines = text_lines(root / tsv)
    columns = (next(lines, (1, ""))[1] or "").removeprefix("\ufeff").split("\t")
    if not {"path", "sentence"} <= set(columns):
        found = f"no columns path and sentence, but {', '.join(columns[:6])}"
        raise UserError(f"{root / tsv} has {found}: is it a list of Common Voice?")
    for number, line in lines:
        if line == "":
            continue
        fields = (line or "").split("\t")
        row = dict(zip(columns, fields, strict=False))
        clip, text = row.get("path", ""), row.get("sentence", "").strip()
        if line is None:
            yield Skipped(tsv, f"line {number}", "bad_row", "not UTF-8")
        elif len(fields) > len(columns) or not clip or not text:
            detail = f"{len(fields)} fields for {len(columns)} columns"
            if len(fields) == len(columns):
                detail = "no path or no sentence"
            yield Skipped(tsv, clip or f"line {number}", "bad_row", detail)
        else:
            clip = PurePosixPath(clip).name
            clip = clip if "." in clip else f"{clip}.mp3"  # the first releases leave the ending out
            id, path = clip.rpartition(".")[0], f"{inner}clips/{clip}"
            language = row.get("locale") or inner.rstrip("/")
            speaker = row.get("client_id", "")
            yield Segment(id, path, 0.0, None, RATE, text, speaker, language, split)
