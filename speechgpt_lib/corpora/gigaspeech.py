"""GigaSpeech: `GigaSpeech.json` and hours-long Opus files → segments.

The list is one JSON file of several gigabytes, so it is read as a stream (ijson), one recording's
entry in memory at a time.  Text comes in capitals with punctuation as tags:

    text_tn    AND SO <COMMA> MY FELLOW AMERICANS <PERIOD>
    signs      AND SO, MY FELLOW AMERICANS.               (the default)
    lower      and so, my fellow americans.
    dropped    AND SO MY FELLOW AMERICANS
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import ijson

from speechgpt_lib.corpora.catalogue import require_corpus
from speechgpt_lib.corpora.lists import Names, chosen_splits
from speechgpt_lib.corpora.segments import Row, Segment, Skipped
from speechgpt_lib.errors import UserError

SUBSETS = tuple("XL L M S XS DEV TEST".split())  # XL contains L contains M contains S contains XS
SIGNS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NOT_SPEECH = ("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>")


def rows(
    root: Path | str, split: Names = None, punctuation: bool = True, lower: bool = False
) -> Iterator[Row]:
    """Segments in the order of `GigaSpeech.json`.

    split: subsets (XL, L, M, S, XS, DEV, TEST); None is XL, DEV and TEST, which is everything.
    A segment carries the first of those asked for that it belongs to.
    """
    root = require_corpus(root, "gigaspeech")
    asked = ("XL", "DEV", "TEST") if split is None else split
    asked = [asked] if isinstance(asked, str) else asked
    names = chosen_splits([name.strip("{}").upper() for name in asked], SUBSETS, root)
    spelled = functools.partial(plain_text, punctuation=punctuation, lower=lower)
    for recording, language in _recordings(root / "GigaSpeech.json"):
        for segment in recording.get("segments") or []:
            inside = (name for name in names if f"{{{name}}}" in segment.get("subsets", ()))
            if (subset := next(inside, None)) is None:
                continue
            yield _segment(recording, segment, (language, subset), spelled)


def plain_text(tagged: str, punctuation: bool = True, lower: bool = False) -> str:
    """Text with punctuation tags → text with signs, or without any."""
    for tag, sign in SIGNS.items():
        tagged = re.sub(rf"\s*{tag}", sign if punctuation else " ", tagged)
    text = " ".join(tagged.split())
    return text.lower() if lower else text


def _recordings(path: Path) -> Iterator[tuple[dict, str]]:
    """The entries of the recordings, each with the language of the list."""
    try:
        with open(path, "rb") as file:
            language = _language(file)
            file.seek(0)
            for recording in ijson.items(file, "audios.item", use_float=True):
                yield recording, language
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what = str(error).split("\n")[0].strip()
        cure = "was its download complete? fetch it again"
        raise UserError(f"{path} breaks off or is not JSON ({what}): {cure}") from None


def _language(file: BinaryIO) -> str:
    """What stands before the list of recordings."""
    language = "en"
    for prefix, _, value in ijson.parse(file):
        if prefix == "language":
            language = str(value).lower()
        if prefix == "audios":
            return language
    raise UserError(f"{file.name} has no list `audios`: is it GigaSpeech's?")


def _segment(
    recording: dict, segment: dict, of: tuple[str, str], spelled: Callable[[str], str]
) -> Row:
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
    rate = int(recording.get("sample_rate") or 16_000)
    return Segment(id, path, float(start), float(end), rate, spelled(text), speaker, *of)
