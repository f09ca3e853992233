"""The readers of six corpora: what lies on a disk, in the layout of catalogue.yaml → utterances.

Each gives its rows as a stream; an utterance gets its end only when its file is looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import ijson

from speechgpt_lib.corpora import catalogue
from speechgpt_lib.corpora.catalogue import Names, chosen_splits, files, require_corpus, text_lines
from speechgpt_lib.corpora.tables import Row, Skipped, Utterance
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import open_text, read_text
from speechgpt_lib.runs.stores import located

SPLIT = "train"  # the only one of LJSpeech and VCTK
# Releases 0.92 and 0.80; of two microphones the first, which every sentence has.
VCTK_LAYOUTS = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))
USUAL = ("train", "dev", "test")  # lists of Common Voice
NO_SPLIT = {"clip_durations", "reported", "times", "unvalidated_sentences", "validated_sentences"}
SUBSETS = tuple("XL L M S XS DEV TEST".split())  # XL contains L contains M contains S contains XS
SIGNS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
LONGEST_S = 1 << 18  # three days: no recording has speech later than this
NOT_SPEECH = ("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>")

Span = tuple[float, float]  # start and end in seconds


def librispeech(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances sorted by subset, speaker, chapter and name, one chapter in memory at a time.

    split: subsets such as dev-clean; None is all that are there.
    `root` may also be the folder that holds `LibriSpeech`, as the archives unpack.
    """
    root, inner = located(root), ""
    if (root / "LibriSpeech").is_dir() and not catalogue.subset_folders(root):
        inner = "LibriSpeech/"
    for subset, speaker, chapter in _chapters(root / inner, "librispeech", split):
        folder = f"{inner}{chapter}"
        lists = [f"{folder}/{name}" for name in files(root / folder, ".trans.txt")]
        yield from _listed(root, folder, ".flac", lists, (" ", 1), speaker, subset)


def lj_speech(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances in the order of their names, numbers written out (in the last of the columns)."""
    root = require_corpus(root, "lj_speech")
    chosen_splits(split, [SPLIT], root)
    yield from _listed(root, "wavs", ".wav", ["metadata.csv"], ("|", -1), "LJ", SPLIT)


def vctk(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances by speaker and name, one speaker in memory at a time.

    A sound file without text (speaker p315 has none) is given all the same.
    """
    root = require_corpus(root, "vctk")
    chosen_splits(split, [SPLIT], root)
    folder, suffix = next(layout for layout in VCTK_LAYOUTS if (root / layout[0]).is_dir())
    for speaker in catalogue.folders(root / folder):
        for name in files(root / folder / speaker, suffix):
            id, path = name.removesuffix(suffix), f"{folder}/{speaker}/{name}"
            text = root / "txt" / speaker / f"{id}.txt"
            try:
                words = " ".join(read_text(text).split()) if text.is_file() else ""
                yield Utterance(id, words, "", "speech", speaker, SPLIT, path=path)
            except UserError as error:
                yield Skipped(path, id, "bad_row", str(error)[-200:])


def libri_light(
    root: Path | str, split: Names = None, maximum_s=20.0, pause_s=2.0, whole_files=False
) -> Iterator[Row]:
    """Utterances without text, sorted by subset, speaker, book, file and time.

    split: subsets (small, medium, large); None is all that are there.
    maximum_s, pause_s: see `join_spans`; a longer pause would be silence that units have to model.
    whole_files: each file is one utterance, and the json files are not read.
    """
    root = located(root)
    for subset, speaker, book in _chapters(root, "libri_light", split):
        for name in files(root / book, ".flac"):
            id, path = f"{book}/{name.removesuffix('.flac')}", f"{book}/{name}"
            whole = Utterance(id, "", "", "speech", speaker, subset, path=path)
            found = whole if whole_files else _activity(root, id)
            if not isinstance(found, list):
                yield found
                continue
            for number, (start, end) in enumerate(join_spans(found, maximum_s, pause_s)):
                yield replace(whole, id=f"{id}/{number:05d}", start=start, end=end)


def join_spans(spans: Sequence[Span], maximum_s: float, pause_s: float) -> list[Span]:
    """Spans of speech in order → utterances of at most `maximum_s`, which cover every span.

    Neighbours are joined as long as the pause between them is at most `pause_s` and the whole stays
    within `maximum_s`; longer spans are cut into equal parts.
    """
    joined: list[Span] = []
    for start, end in spans:
        parts = max(1, math.ceil(round((end - start) / maximum_s, 9)))
        first, last = joined[-1] if joined else (-math.inf, -math.inf)
        if parts == 1 and start - last <= pause_s and end - first <= maximum_s:
            joined[-1] = (first, end)
        else:
            joined += pairwise([start + (end - start) * k / parts for k in range(parts)] + [end])
    return joined


def _activity(root: Path, id: str) -> list[Span] | Skipped:
    """The spans in which somebody speaks."""
    path = root / f"{id}.json"
    if not path.is_file():
        return Skipped(f"{id}.flac", id, "bad_row", "no json with voice_activity beside it")
    try:
        with reading(path, "fetch it again", "has no usable voice_activity"):
            activity = json.loads(read_text(path))["voice_activity"]
            spans = [(float(start), float(end)) for start, end in activity]
            in_order = all(a[1] <= b[0] for a, b in pairwise(spans))
            if not in_order or any(not 0 <= start < end <= LONGEST_S for start, end in spans):
                raise ValueError(f"spans are not in order, or not within {LONGEST_S} s")
    except UserError as error:
        return Skipped(f"{id}.json", id, "bad_row", str(error))
    return spans or Skipped(f"{id}.flac", id, "not_speech", "voice_activity is empty")


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
        there = {file.removesuffix(".tsv") for file in files(place, ".tsv")} - NO_SPLIT
        usual = [tsv for tsv in USUAL if tsv in there]
        known = [*usual, *sorted(there - set(USUAL))]
        if split is None and not usual:
            what = f"the lists of {place} are {', '.join(known) or 'none'}, not {', '.join(USUAL)}"
            name = known[-1] if known else "NAME"
            raise UserError(f"{what}: ask for one by --split {name}, or `splits:` in a recipe")
        chosen = chosen_splits(usual if split is None else split, known, place)
        twice = ", ".join(tsv for tsv in usual if tsv in chosen)
        if "validated" in chosen and twice:
            raise UserError(f"validated already contains {twice} of {place}: ask for it or them")
        for tsv in chosen:
            yield from _clips(root, folder, tsv)


def _clips(root: Path, folder: str, split: str) -> Iterator[Row]:
    """The rows of a TSV, which is no CSV: quotation marks mean nothing, single ones occur.

    Columns are found by name: releases have 8 to 13 of them.
    """
    tsv = f"{folder}{split}.tsv"
    lines = text_lines(root / tsv)
    columns = (next(lines, (1, ""))[1] or "").split("\t")
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
            detail = "no path or no sentence" if len(fields) == len(columns) else detail
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
    path = root / "GigaSpeech.json"
    with reading(path, "fetch it again", "breaks off or is not JSON"):
        for recording, language in _recordings(path):
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
    """The recordings of the list (gigabytes: one is in memory at a time), and their language."""
    with open_text(path) as file:
        begin, language = file.tell(), "en"
        for prefix, _, value in ijson.parse(file, use_float=True):
            if prefix == "language":
                language = str(value).lower()
            if prefix == "audios":
                break
        else:
            raise UserError(f"{path} has no list `audios`: is it GigaSpeech's?")
        file.seek(begin)
        for recording in ijson.items(file, "audios.item", use_float=True):
            yield recording, language


def _segment(recording: dict, segment: dict, subset: str, language: str, *spelling: bool) -> Row:
    path, id = str(recording.get("path", "")), str(segment.get("sid", ""))
    start, end, text = (segment.get(key) for key in ("begin_time", "end_time", "text_tn"))
    timed = isinstance(start, int | float) and isinstance(end, int | float)
    timed = timed and 0 <= start < end <= LONGEST_S  # which NaN isn't
    if not (path and id and timed and isinstance(text, str)):
        what = f"begin_time {start!s:.40}, end_time {end!s:.40}, text_tn {text!s:.100}"
        return Skipped(path, id, "bad_row", what)
    if any(tag in text for tag in NOT_SPEECH):
        return Skipped(path, id, "not_speech", text[:200])
    speakers = (source.get("speaker") for source in (segment, recording))
    speaker = str(next((name for name in speakers if name and name != "N/A"), ""))
    spoken = {"path": path, "start": float(start), "end": float(end), "language": language}
    return Utterance(id, plain_text(text, *spelling), "", "speech", speaker, subset, **spoken)


def _chapters(root: Path, corpus: str, split: Names) -> Iterator[tuple[str, str, str]]:
    """(subset, speaker, folder) of the chapters of the subsets asked for."""
    there = catalogue.subset_folders(require_corpus(root, corpus))
    return catalogue.chapters(root, chosen_splits(split, there, root))


def _listed(
    root: Path, folder: str, suffix: str, lists: list[str], columns: tuple[str, int], *who: str
) -> Iterator[Row]:
    """The recordings in `folder`, sorted by name, with their texts: the last column of `lists`.

    A line without a recording is given all the same: its check finds the file `missing`.
    Lines that are not UTF-8 or have no text come as Skipped, before the others.
    columns: what separates them, and how often at most.  who: speaker and split.
    """
    texts = {name.removesuffix(suffix): "" for name in files(root / folder, suffix)}
    for name in lists:
        for number, line in text_lines(root / name):
            id, *fields = map(str.strip, (line or "").strip().split(*columns))
            text = next(filter(None, (*fields[-1:], *fields[:1])), "")
            if line is None:
                yield Skipped(name, f"line {number}", "bad_row", "not UTF-8")
            elif id and not text:
                yield Skipped(name, id, "bad_row", f"line {number} has no text")
                texts.pop(id, None)
            elif id:
                texts[id] = text
    for id, text in sorted(texts.items()):
        yield Utterance(id, text, "", "speech", *who, path=f"{folder}/{id}{suffix}")


_ALL = (librispeech, common_voice, gigaspeech, libri_light, lj_speech, vctk)
READERS = {reader.__name__: reader for reader in _ALL}
