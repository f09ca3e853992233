"""Libri-Light: `subset/speaker/book/*.flac`, each with a json of where somebody speaks → unlabelled segments, a book at a time.

The files are whole chapters, up to an hour long.  `voice_activity` in the json lists the spans (s) in which speech was found; spans
that follow each other closely are joined into utterances of at most `maximum_s` seconds, longer ones are cut into equal parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_lib.corpora.catalogue import (
    chosen_splits,
    files,
    folders,
    require_corpus,
    subset_folders,
)
from speechgpt_lib.corpora.segments import Segment, Skipped

RATE = 16_000
MAXIMUM_S = 20.0
PAUSE_S = 2.0  # a longer pause ends an utterance: it would be silence that the units have to model


def rows(
    root: Path | str,
    split: str | Sequence[str] | None = None,
    maximum_s: float = MAXIMUM_S,
    pause_s: float = PAUSE_S,
    whole_files: bool = False,
) -> Iterator[Segment | Skipped]:
    """Utterances sorted by subset, speaker, book, file and time; `split` names subsets (small, medium, large; None is all there are).

    With `whole_files` each file is one utterance and the json files are not read.
    """
    root = require_corpus(root, "libri_light")
    for subset in chosen_splits(split, subset_folders(root), root):
        for speaker in filter(str.isdigit, folders(root / subset)):
            for book in folders(root / subset / speaker):
                for name in files(root / subset / speaker / book, ".flac"):
                    id = f"{subset}/{speaker}/{book}/{name.removesuffix('.flac')}"
                    if whole_files:
                        yield Segment(
                            id, f"{id}.flac", 0.0, None, RATE, None, speaker, "en", subset
                        )
                    else:
                        yield from _utterances(root, id, subset, speaker, maximum_s, pause_s)


def iterate(
    root: Path | str,
    split: str | Sequence[str] | None = None,
    maximum_s: float = MAXIMUM_S,
    pause_s: float = PAUSE_S,
    whole_files: bool = False,
) -> Iterator[Segment]:
    """`rows` without those that give no utterance."""
    return (
        row
        for row in rows(root, split, maximum_s, pause_s, whole_files)
        if isinstance(row, Segment)
    )


def join_spans(
    spans: Sequence[Sequence[float]], maximum_s: float = MAXIMUM_S, pause_s: float = PAUSE_S
) -> list[tuple[float, float]]:
    """Spans of speech (start, end) in seconds, in order → utterances of at most `maximum_s`, in order, which cover every span.

    Neighbours are joined as long as the pause between them is at most `pause_s` and the whole stays within `maximum_s`.
    """
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        parts = max(1, math.ceil(round((end - start) / maximum_s, 9)))
        edges = [start + (end - start) * k / parts for k in range(parts)] + [end]
        for left, right in zip(edges, edges[1:], strict=False):
            if (
                parts == 1
                and joined
                and left - joined[-1][1] <= pause_s
                and right - joined[-1][0] <= maximum_s
            ):
                joined[-1] = (joined[-1][0], right)
            else:
                joined.append((left, right))
    return joined


def _utterances(
    root: Path, id: str, subset: str, speaker: str, maximum_s: float, pause_s: float
) -> Iterator[Segment | Skipped]:
    try:
        activity = json.loads((root / f"{id}.json").read_bytes())["voice_activity"]
        spans = [(float(start), float(end)) for start, end in activity]
        if any(not 0 <= start < end for start, end in spans) or any(
            a[1] > b[0] for a, b in zip(spans, spans[1:], strict=False)
        ):
            raise ValueError("spans are not in order")
    except FileNotFoundError:
        yield Skipped(f"{id}.flac", id, "bad_row", "no json with voice_activity beside it")
        return
    except (ValueError, TypeError, KeyError) as error:
        yield Skipped(
            f"{id}.json",
            id,
            "bad_row",
            f"no usable voice_activity: {type(error).__name__}: {error}".split("\n")[0][:200],
        )
        return
    if not spans:
        yield Skipped(f"{id}.flac", id, "not_speech", "voice_activity is empty")
    for number, (start, end) in enumerate(join_spans(spans, maximum_s, pause_s)):
        yield Segment(
            f"{id}/{number:05d}", f"{id}.flac", start, end, RATE, None, speaker, "en", subset
        )
