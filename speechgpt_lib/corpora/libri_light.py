"""Libri-Light: `subset/speaker/book/*.flac`, each with a json of where somebody speaks → segments.

The files are whole chapters, up to an hour long, without text.  `voice_activity` in the json lists
the spans (s) in which speech was found; spans that follow each other closely are joined into
utterances of at most `maximum_s` seconds, longer ones are cut into equal parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from speechgpt_lib.corpora.catalogue import require_corpus
from speechgpt_lib.corpora.lists import Names, chapters, chosen_splits, files, subset_folders
from speechgpt_lib.corpora.segments import Row, Segment, Skipped

RATE = 16_000  # Hz
MAXIMUM_S = 20.0
PAUSE_S = 2.0  # a longer pause ends an utterance: it would be silence that the units have to model

Span = tuple[float, float]  # start and end in seconds


def rows(
    root: Path | str,
    split: Names = None,
    maximum_s: float = MAXIMUM_S,
    pause_s: float = PAUSE_S,
    whole_files: bool = False,
) -> Iterator[Row]:
    """Utterances sorted by subset, speaker, book, file and time.

    split: subsets (small, medium, large); None is all that are there.
    whole_files: each file is one utterance, and the json files are not read.
    """
    root = require_corpus(root, "libri_light")
    subsets = chosen_splits(split, subset_folders(root), root)
    for subset, speaker, book in chapters(root, subsets):
        for name in files(root / book, ".flac"):
            id, path = f"{book}/{name.removesuffix('.flac')}", f"{book}/{name}"
            rest = (RATE, None, speaker, "en", subset)
            spans = [] if whole_files else _activity(root, id)
            if isinstance(spans, Skipped):
                yield spans
                continue
            if whole_files:
                yield Segment(id, path, 0.0, None, *rest)
            for number, span in enumerate(join_spans(spans, maximum_s, pause_s)):
                yield Segment(f"{id}/{number:05d}", path, *span, *rest)


def join_spans(
    spans: Sequence[Span], maximum_s: float = MAXIMUM_S, pause_s: float = PAUSE_S
) -> list[Span]:
    """Spans of speech in order → utterances of at most `maximum_s`, which cover every span.

    Neighbours are joined as long as the pause between them is at most `pause_s` and the whole stays
    within `maximum_s`.
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
