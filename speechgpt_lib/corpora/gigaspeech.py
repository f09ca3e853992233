"""GigaSpeech: `GigaSpeech.json` and hours-long Opus files → segments, one recording's entry in memory at a time.

The list is one JSON file of several gigabytes, so it is read as a stream (ijson).  Text comes in capitals with punctuation as tags:

    text_tn    AND SO <COMMA> MY FELLOW AMERICANS <PERIOD>
    signs      AND SO, MY FELLOW AMERICANS.               (the default)
    lower      and so, my fellow americans.
    dropped    AND SO MY FELLOW AMERICANS
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import ijson

from speechgpt_lib.corpora.catalogue import chosen_splits, require_corpus
from speechgpt_lib.corpora.segments import Segment, Skipped
from speechgpt_lib.errors import UserError

SUBSETS = (
    "XL",
    "L",
    "M",
    "S",
    "XS",
    "DEV",
    "TEST",
)  # XL contains L contains M contains S contains XS
SIGNS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NOT_SPEECH = ("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>")


def rows(
    root: Path | str,
    split: str | Sequence[str] | None = None,
    punctuation: bool = True,
    lower: bool = False,
) -> Iterator[Segment | Skipped]:
    """Segments in the order of `GigaSpeech.json`.

    Args:
        split: subsets (XL, L, M, S, XS, DEV, TEST); None is XL, DEV and TEST, which is everything.  A segment carries the first of the
            subsets asked for that it belongs to.
        punctuation, lower: see the table above.  Segments marked as silence, noise, music or other come as `not_speech`.
    """
    root = require_corpus(root, "gigaspeech")
    asked = (
        ("XL", "DEV", "TEST") if split is None else (split,) if isinstance(split, str) else split
    )
    wanted = [
        f"{{{name}}}"
        for name in chosen_splits([name.strip("{}").upper() for name in asked], SUBSETS, root)
    ]
    for recording, language in _recordings(root / "GigaSpeech.json"):
        for segment in recording.get("segments") or []:
            subset = next((name for name in wanted if name in segment.get("subsets", ())), None)
            if subset is not None:
                yield _segment(recording, segment, language, subset.strip("{}"), punctuation, lower)


def iterate(
    root: Path | str,
    split: str | Sequence[str] | None = None,
    punctuation: bool = True,
    lower: bool = False,
) -> Iterator[Segment]:
    """`rows` without those that give no utterance."""
    return (row for row in rows(root, split, punctuation, lower) if isinstance(row, Segment))


def plain_text(tagged: str, punctuation: bool = True, lower: bool = False) -> str:
    """Text with punctuation tags → text with signs, or without any."""
    for tag, sign in SIGNS.items():
        tagged = re.sub(rf"\s*{tag}", sign if punctuation else " ", tagged)
    text = " ".join(tagged.split())
    return text.lower() if lower else text


def _recordings(path: Path) -> Iterator[tuple[dict, str]]:
    try:
        with open(path, "rb") as file:
            language = _language(file)
            file.seek(0)
            for recording in ijson.items(file, "audios.item", use_float=True):
                yield recording, language
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what = str(error).split("\n")[0].strip()
        raise UserError(
            f"{path} breaks off or is not JSON ({what}): was its download complete? fetch it again"
        ) from None


def _language(file) -> str:
    """What stands before the list of recordings."""
    language = "en"
    for prefix, _, value in ijson.parse(file):
        if prefix == "language":
            language = str(value).lower()
        if prefix == "audios":
            return language
    raise UserError(f"{file.name} has no list `audios`: is it GigaSpeech's?")


def _segment(
    recording: dict, segment: dict, language: str, subset: str, punctuation: bool, lower: bool
) -> Segment | Skipped:
    path, id = str(recording.get("path", "")), str(segment.get("sid", ""))
    start, end, tagged = (segment.get(key) for key in ("begin_time", "end_time", "text_tn"))
    if not (
        path
        and id
        and isinstance(tagged, str)
        and isinstance(start, int | float)
        and isinstance(end, int | float)
        and start < end
    ):
        return Skipped(
            path, id, "bad_row", f"begin_time {start}, end_time {end}, text_tn {tagged!r}"[:200]
        )
    if any(tag in tagged for tag in NOT_SPEECH):
        return Skipped(path, id, "not_speech", tagged[:200])
    text = plain_text(tagged, punctuation, lower)
    speaker = next(
        (s for s in (segment.get("speaker"), recording.get("speaker")) if s and s != "N/A"), ""
    )
    rate = int(recording.get("sample_rate") or 16_000)
    return Segment(id, path, float(start), float(end), rate, text, speaker, language, subset)
