"""Corpora whose folders hold each text beside its sound → utterances.

LibriSpeech  SUBSET/SPEAKER/CHAPTER/*.flac and a *.trans.txt with a line for each
Libri-Light  SUBSET/SPEAKER/BOOK/*.flac, up to an hour each, and a json of where somebody speaks
LJSpeech     wavs/*.wav, metadata.csv (name | text | text with numbers written out)
VCTK 0.92    wav48_silence_trimmed/SPEAKER/*_mic1.flac, txt/SPEAKER/*.txt
VCTK 0.80    wav48/SPEAKER/*.wav, txt/SPEAKER/*.txt
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from speechgpt_lib.corpora import catalogue
from speechgpt_lib.corpora.catalogue import Names, chosen_splits, files, require_corpus, text_lines
from speechgpt_lib.corpora.segments import Row, Skipped, Utterance

MAXIMUM_S = 20.0
PAUSE_S = 2.0  # a longer pause ends an utterance: it would be silence that the units have to model
SPLIT = "train"  # the only one of LJSpeech and VCTK
# Of VCTK's two microphones the first, which every sentence has.
VCTK_LAYOUTS = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))

Span = tuple[float, float]  # start and end in seconds


def librispeech(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances sorted by subset, speaker, chapter and name, one chapter in memory at a time.

    split: subsets such as dev-clean; None is all that are there.
    `root` may also be the folder that holds `LibriSpeech`, as the archives unpack.
    """
    root, inner = Path(root).expanduser(), ""
    if (root / "LibriSpeech").is_dir() and not catalogue.subset_folders(root):
        inner = "LibriSpeech/"
    for subset, speaker, chapter in _chapters(root / inner, "librispeech", split):
        folder = f"{inner}{chapter}"
        lists = [f"{folder}/{name}" for name in files(root / folder, ".trans.txt")]
        yield from _listed(root, folder, ".flac", lists, (" ", 1), speaker, subset)


def lj_speech(root: Path | str, split: Names = None) -> Iterator[Row]:
    """Utterances in the order of their names, numbers written out."""
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
            lines = [line for _, line in text_lines(text)] if text.is_file() else []
            if None in lines:
                yield Skipped(path, id, "bad_row", f"txt/{speaker}/{id}.txt is not UTF-8")
            else:
                words = " ".join(" ".join(lines).split())
                yield Utterance(id, words, "", "speech", speaker, SPLIT, path=path)


def libri_light(
    root: Path | str,
    split: Names = None,
    maximum_s: float = MAXIMUM_S,
    pause_s: float = PAUSE_S,
    whole_files: bool = False,
) -> Iterator[Row]:
    """Utterances without text, sorted by subset, speaker, book, file and time.

    split: subsets (small, medium, large); None is all that are there.
    maximum_s, pause_s: see `join_spans`.
    whole_files: each file is one utterance, and the json files are not read.
    """
    root = Path(root).expanduser()
    for subset, speaker, book in _chapters(root, "libri_light", split):
        for name in files(root / book, ".flac"):
            id, path = f"{book}/{name.removesuffix('.flac')}", f"{book}/{name}"
            whole = Utterance(id, "", "", "speech", speaker, subset, path=path)
            spans = [] if whole_files else _activity(root, id)
            if whole_files or isinstance(spans, Skipped):
                yield whole if whole_files else spans
                continue
            for number, (start, end) in enumerate(join_spans(spans, maximum_s, pause_s)):
                yield replace(whole, id=f"{id}/{number:05d}", start=start, end=end)


def join_spans(
    spans: Sequence[Span], maximum_s: float = MAXIMUM_S, pause_s: float = PAUSE_S
) -> list[Span]:
    """Spans of speech in order → utterances of at most `maximum_s`, which cover every span.

    Neighbours are joined as long as the pause between them is at most `pause_s` and the whole stays
    within `maximum_s`; longer spans are cut into equal parts.
    """
    joined: list[Span] = []
    for start, end in spans:
        parts = max(1, math.ceil(round((end - start) / maximum_s, 9)))
        edges = [start + (end - start) * k / parts for k in range(parts)] + [end]
        for left, right in pairwise(edges):
            first, last = joined[-1] if joined else (left, left)
            near = left - last <= pause_s and right - first <= maximum_s
            if joined and parts == 1 and near:
                joined[-1] = (first, right)
            else:
                joined.append((left, right))
    return joined


def _activity(root: Path, id: str) -> list[Span] | Skipped:
    """The spans in which somebody speaks."""
    try:
        activity = json.loads((root / f"{id}.json").read_bytes())["voice_activity"]
        spans = [(float(start), float(end)) for start, end in activity]
        in_order = all(a[1] <= b[0] for a, b in pairwise(spans))
        if not in_order or any(not 0 <= start < end for start, end in spans):
            raise ValueError("spans are not in order")
    except FileNotFoundError:
        return Skipped(f"{id}.flac", id, "bad_row", "no json with voice_activity beside it")
    except (ValueError, TypeError, KeyError) as error:
        what = f"no usable voice_activity: {type(error).__name__}: {error}".split("\n")[0]
        return Skipped(f"{id}.json", id, "bad_row", what[:200])
    return spans or Skipped(f"{id}.flac", id, "not_speech", "voice_activity is empty")


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
