"""Corpora with one long list of all their sound, which is read as a stream → utterances.

Common Voice  clips/*.mp3 and one TSV a split.  It is no CSV: a tab ends a field and a quotation
              mark means nothing, however many there are (sentences with a single one occur, and a
              CSV reader would swallow the lines up to the next).  Columns are found by name:
              releases have 8 to 13 of them.
GigaSpeech    hours-long Opus files and GigaSpeech.json, several gigabytes (read by ijson, one
              recording's entry in memory at a time).  Its text has punctuation as tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import ijson

from speechgpt_lib.corpora import catalogue
from speechgpt_lib.corpora.catalogue import Names, chosen_splits, files, require_corpus, text_lines
from speechgpt_lib.corpora.segments import Row, Skipped, Utterance
from speechgpt_lib.errors import UserError

DEFAULT = ("train", "dev", "test")
_NO_SPLIT = {"clip_durations", "reported", "times", "unvalidated_sentences", "validated_sentences"}
SUBSETS = tuple("XL L M S XS DEV TEST".split())  # XL contains L contains M contains S contains XS
SIGNS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NOT_SPEECH = ("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>")


def common_voice(root: Path | str, split: Names = None, language: Names = None) -> Iterator[Row]:
    """Utterances in the order of the lists.

    root: the folder of one language, or of a release with one folder a language.
    split: names of TSV files (train, dev, test, validated, other, invalidated); None is the first
    three.  `validated` contains these and can't be asked for beside them.
    language: folders to read, such as en; None is all that are there.
    """
    root = require_corpus(root, "common_voice")
    languages = catalogue.language_folders(root)
    if languages != ["."]:
        languages = chosen_splits(language, [name for name in languages if name != "."], root)
    for name in languages:
        place, folder = root / name, "" if name == "." else f"{name}/"
        there = {file.removesuffix(".tsv") for file in files(place, ".tsv")} - _NO_SPLIT
        usual = [tsv for tsv in DEFAULT if tsv in there]
        known = [*usual, *sorted(there - set(DEFAULT))]
        chosen = chosen_splits(usual if split is None else split, known, place)
        twice = ", ".join(tsv for tsv in usual if tsv in chosen)
        if "validated" in chosen and twice:
            cure = "ask for it, or for the others, not for both"
            raise UserError(f"validated already contains {twice} of {place}: {cure}")
        for tsv in chosen:
            yield from _clips(root, folder, tsv)


def _clips(root: Path, folder: str, split: str) -> Iterator[Row]:
    tsv = f"{folder}{split}.tsv"
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
            id, path = clip.rpartition(".")[0], f"{folder}clips/{clip}"
            spoken = {"path": path, "language": row.get("locale") or folder.rstrip("/")}
            yield Utterance(id, text, "", "speech", row.get("client_id", ""), split, **spoken)


def gigaspeech(
    root: Path | str, split: Names = None, punctuation: bool = True, lower: bool = False
) -> Iterator[Row]:
    """Segments in the order of `GigaSpeech.json`.

    split: subsets (XL, L, M, S, XS, DEV, TEST); None is XL, DEV and TEST, which is everything.
    A segment carries the first of those asked for that it belongs to.
    punctuation, lower: see `plain_text`.
    """
    root = require_corpus(root, "gigaspeech")
    asked = ("XL", "DEV", "TEST") if split is None else split
    asked = [asked] if isinstance(asked, str) else asked
    names = chosen_splits([name.strip("{}").upper() for name in asked], SUBSETS, root)
    for recording, language in _recordings(root / "GigaSpeech.json"):
        for segment in recording.get("segments") or []:
            inside = (name for name in names if f"{{{name}}}" in segment.get("subsets", ()))
            if subset := next(inside, None):
                yield _segment(recording, segment, subset, language, punctuation, lower)


def plain_text(tagged: str, punctuation: bool = True, lower: bool = False) -> str:
    """Text with punctuation tags → text with signs, or without any.

    AND SO <COMMA> MY FELLOW AMERICANS <PERIOD> → AND SO, MY FELLOW AMERICANS.
    """
    for tag, sign in SIGNS.items():
        tagged = re.sub(rf"\s*{tag}", sign if punctuation else " ", tagged)
    text = " ".join(tagged.split())
    return text.lower() if lower else text


def _recordings(path: Path) -> Iterator[tuple[dict, str]]:
    """The entries of the recordings, each with the language of the list, which stands before."""
    try:
        with open(path, "rb") as file:
            language = "en"
            for prefix, _, value in ijson.parse(file):
                if prefix == "language":
                    language = str(value).lower()
                if prefix == "audios":
                    break
            else:
                raise UserError(f"{path} has no list `audios`: is it GigaSpeech's?")
            file.seek(0)
            for recording in ijson.items(file, "audios.item", use_float=True):
                yield recording, language
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what = str(error).split("\n")[0].strip()
        cure = "was its download complete? fetch it again"
        raise UserError(f"{path} breaks off or is not JSON ({what}): {cure}") from None


def _segment(recording: dict, segment: dict, subset: str, language: str, *spelling: bool) -> Row:
    path, id = str(recording.get("path", "")), str(segment.get("sid", ""))
    start, end, text = (segment.get(key) for key in ("begin_time", "end_time", "text_tn"))
    timed = isinstance(start, int | float) and isinstance(end, int | float) and start < end
    if not (path and id and timed and isinstance(text, str)):
        what = f"begin_time {start}, end_time {end}, text_tn {text!r}"
        return Skipped(path, id, "bad_row", what[:200])
    if any(tag in text for tag in NOT_SPEECH):
        return Skipped(path, id, "not_speech", text[:200])
    speakers = (source.get("speaker") for source in (segment, recording))
    speaker = next((name for name in speakers if name and name != "N/A"), "")
    spoken = {"path": path, "start": float(start), "end": float(end), "language": language}
    return Utterance(id, plain_text(text, *spelling), "", "speech", speaker, subset, **spoken)
