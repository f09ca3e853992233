"""Common Voice: `clips/*.mp3` and one TSV a split → segments, line by line.

The TSV files are no CSV: a tab ends a field and a quotation mark means nothing, however many there are (sentences with a single one
occur, and a CSV reader would swallow the lines up to the next).  Columns are found by name: releases have 8 to 13 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from speechgpt_lib.corpora.catalogue import chosen_splits, files, language_folders, require_corpus
from speechgpt_lib.corpora.segments import Segment, Skipped
from speechgpt_lib.errors import UserError

RATE = 48_000  # of most clips; older ones differ, the file's header knows
DEFAULT = ("train", "dev", "test")
_NO_SPLIT = {"clip_durations", "reported", "times", "unvalidated_sentences", "validated_sentences"}


def rows(
    root: Path | str,
    split: str | Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
) -> Iterator[Segment | Skipped]:
    """Utterances in the order of the lists.

    Args:
        root: the folder of one language, or of a release with one folder a language.
        split: names of TSV files (train, dev, test, validated, other, invalidated); None is train, dev and test, as far as they are
            there.  `validated` contains these three and can't be asked for beside them.
        language: folders to read, such as en; None is all that are there.
    """
    root = require_corpus(root, "common_voice")
    there = language_folders(root)
    for name in (
        there if there == ["."] else chosen_splits(language, [n for n in there if n != "."], root)
    ):
        place, inner = root / name, "" if name == "." else f"{name}/"
        lists = sorted(
            {file.removesuffix(".tsv") for file in files(place, ".tsv")} - _NO_SPLIT, key=_order
        )
        asked = [s for s in DEFAULT if s in lists] if split is None else split
        chosen = chosen_splits(asked, lists, place)
        if (
            "validated" in chosen
            and len(chosen) > 1
            and (twice := sorted(set(chosen) & set(DEFAULT)))
        ):
            raise UserError(
                f"validated already contains {', '.join(twice)} of {place}: ask for it, or for the others, not for both"
            )
        for one in chosen:
            yield from _list(place, inner, one, name)


def iterate(
    root: Path | str,
    split: str | Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
) -> Iterator[Segment]:
    """`rows` without those that give no utterance."""
    return (row for row in rows(root, split, language) if isinstance(row, Segment))


def _order(split: str) -> tuple[int, str]:
    return (DEFAULT.index(split) if split in DEFAULT else len(DEFAULT), split)


def _list(place: Path, inner: str, split: str, folder: str) -> Iterator[Segment | Skipped]:
    tsv = f"{inner}{split}.tsv"
    with open(place / f"{split}.tsv", "rb") as lines:
        header = next(lines, b"").decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        if not {"path", "sentence"} <= set(header):
            raise UserError(
                f"{place / split}.tsv has no columns path and sentence, but {', '.join(header[:6])}: is it a list of Common Voice?"
            )
        for number, line in enumerate(lines, 2):
            try:
                fields = line.decode("utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                yield Skipped(tsv, f"line {number}", "bad_row", "not UTF-8")
                continue
            if fields == [""]:
                continue
            row = dict(zip(header, fields, strict=False))
            if (
                len(fields) > len(header)
                or not row.get("path")
                or not row.get("sentence", "").strip()
            ):
                detail = (
                    f"{len(fields)} fields for {len(header)} columns"
                    if len(fields) != len(header)
                    else "no path or no sentence"
                )
                yield Skipped(tsv, row.get("path") or f"line {number}", "bad_row", detail)
                continue
            yield _segment(row, inner, split, folder)


def _segment(row: dict[str, str], inner: str, split: str, folder: str) -> Segment:
    clip = PurePosixPath(row["path"]).name
    clip = clip if "." in clip else f"{clip}.mp3"  # the first releases leave the ending out
    language = row.get("locale") or (folder if folder != "." else "")
    id = clip.rpartition(".")[0]
    return Segment(
        id,
        f"{inner}clips/{clip}",
        0.0,
        None,
        RATE,
        row["sentence"].strip(),
        row.get("client_id", ""),
        language,
        split,
    )
