"""moss-002-sft-data → written question–answer pairs short enough to be spoken.

The chain-of-modality set was made from them: responses of at most 35 words, 37,969 samples (paper).
`read_moss` reads, `select` keeps what can be spoken, a `Report` counts what either drops.  The data
is CC BY-NC and comes with MOSS, not with this course; `moss_files` knows its forms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import moss_files
from speechgpt_lib.instructions.chain import Dialogue
from speechgpt_lib.instructions.classroom import Filter
from speechgpt_lib.instructions.duplicates import Seen
from speechgpt_lib.instructions.moss_files import HUMAN, MOSS
from speechgpt_lib.instructions.parsing import BadRow, marker_in

MAXIMUM_WORDS = 35  # of a response (paper, section 3.2)
PLACES = 20  # remembered a reason
REASONS = {  # why something is dropped, in the order of the steps
    "records": "too long, broken JSON, not an object, no text",
    "turn pairs": "no answer, missing end marker, turns out of order, text outside a turn, "
    "no text in a turn, piece too long, broken UTF-8, empty turn",
    "well-formed pairs": "response too long, marker in text, not speakable, "
    "unsafe for classrooms, duplicate",
}

_MARK = re.compile(rf"(?P<H>{HUMAN})|(?P<h><eoh>)|(?P<M>{MOSS})|(?P<m><eoa>|<ea>|<eom>)")
_FAULTS = {"": "text outside a turn", "H": "no answer", "Hh": "no answer"}
_FAULTS |= dict.fromkeys(("HM", "HhM", "HMm"), "missing end marker")
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")  # undecodable bytes, halves of surrogate pairs
_ONE_A_WORD = re.compile(
    "[々〇\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"  # Hangul
)
_ID = re.compile(r"[\w.:+-]{1,80}")  # never "#", which marks running numbers


@dataclass
class Report:
    """What was read, dropped and kept: counts of each step, and the first places of each reason."""

    records: int = 0
    pairs: int = 0
    offered: int = 0  # pairs that came to `select`
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, place: str, bad: BadRow) -> None:
        """Count what stands at `place` under the reason of `bad`."""
        self.dropped[bad.reason] += 1
        places = self.places.setdefault(bad.reason, [])
        if len(places) < PLACES:
            places.append(f"{place}: {bad.detail}" if bad.detail else place)

    def funnel(self) -> list[dict]:
        """{step, dropped, left} of each step that dropped anything, and of what is counted."""
        rows = []
        counts = (self.records, self.pairs, self.offered)
        for (head, reasons), left in zip(REASONS.items(), counts, strict=True):
            if left:
                rows.append({"step": head, "dropped": 0, "left": left})
            for reason in filter(self.dropped.get, reasons.split(", ")):
                left -= self.dropped[reason]
                rows.append({"step": reason, "dropped": self.dropped[reason], "left": left})
        return [*rows, {"step": "kept", "dropped": 0, "left": self.kept}] if self.offered else rows


def read_moss(path: Path | str, report: Report) -> Iterator[Dialogue]:
    """Samples of a file, or of all files of a folder in order of their names; memory stays flat.

    A sample is a turn pair, its white space collapsed; earlier turns of its dialogue are not kept.
    Ids are `<record id>-<turn>`; without a new, usable id a record goes by its number: `#7-1`.  In
    a folder the file's name stands before: `en_honesty.json/12-1`.  `report` counts what can't be
    understood; only a fault in the JSON of a list costs the rest of the list.  Raises UserError
    where nothing is there, or a file is in none of the forms.
    """
    path = Path(path)
    for file in moss_files.find_files(path):
        prefix = "" if file == path else f"{file.relative_to(path).as_posix()}/"
        for identity, place, piece in _pieces(file, report):
            report.pairs += 1
            try:
                instruction, response = _pair(piece)
            except BadRow as bad:
                report.drop(place, bad)
            else:
                yield Dialogue(prefix + identity, instruction, response, "moss", source=place)


def _pieces(file: Path, report: Report) -> Iterator[tuple[str, str, str | BadRow]]:
    """(id, place, what should be a turn pair) of a file."""
    form, seen = moss_files.find_form(file), Seen()
    if form == "text":
        report.records += 1
        for turn, (line, piece) in enumerate(moss_files.read_text(file), 1):
            yield f"#1-{turn}", f"{file}:{line}", piece
        return
    for number, (where, record) in enumerate(moss_files.read_records(file, form), 1):
        report.records += 1
        place = f"{file}:{where}"
        try:
            turns = moss_files.turns_of(record)
        except BadRow as bad:
            report.drop(place, bad)
            continue
        found = record.get("id", record.get("conversation_id"))
        usable = isinstance(found, str) or (type(found) is int and abs(found) < 1 << 63)
        identity = str(found) if usable else ""
        if not (_ID.fullmatch(identity) and seen.is_new(identity)):
            identity = f"#{number}"
        for turn, piece in turns:
            yield f"{identity}-{turn}", place, piece


def _pair(piece: str | BadRow) -> tuple[str, str]:
    """[Human]: …<eoh> [MOSS]: …<eoa> (or <ea>, <eom>) → instruction, response.  Raises BadRow."""
    if isinstance(piece, BadRow):
        raise piece
    marks = list(_MARK.finditer(piece))
    shape = "".join(mark.lastgroup for mark in marks)
    if shape != "HhMm":
        found = " ".join(mark[0] for mark in marks[:6]) or repr(piece.strip()[:40])
        raise BadRow(_FAULTS.get(shape, "turns out of order"), f"found {found}")
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(piece)]
    texts = zip(edges[::2], edges[1::2], strict=True)
    before, instruction, between, response, after = (" ".join(piece[a:b].split()) for a, b in texts)
    if stray := before or between or after:
        raise BadRow("text outside a turn", f"found {stray[:40]!r}")
    if broken := _BROKEN.search(instruction + response):
        raise BadRow("broken UTF-8", f"found {broken[0]!a} in the text")
    if not (instruction and response):
        raise BadRow("empty turn", "no response" if instruction else "no instruction")
    return instruction, response


def select(
    dialogues: Iterable[Dialogue],
    *,
    maximum_words: int = MAXIMUM_WORDS,
    classroom: Filter | None = None,
    report: Report,
) -> Iterator[Dialogue]:
    """The dialogues that can become speech, in their order.

    The others are counted in `report` under the first reason they meet: response too long; marker
    or unit of ours; nothing to pronounce, or code; the `classroom` filter; said before.
    """
    if maximum_words < 1:
        raise UserError(f"no response has {maximum_words} words: choose 1 or more (the paper: 35)")
    seen = Seen()
    for dialogue in dialogues:
        report.offered += 1
        try:
            _check(dialogue, maximum_words, classroom, seen)
        except BadRow as bad:
            report.drop(dialogue.source, bad)
        else:
            report.kept += 1
            yield dialogue


def count_words(text: str) -> int:
    """Pieces between blanks; Chinese, Japanese and Korean characters, written without, count each.

    Stretches between such characters count if they have a letter or digit: "用Python写，好" is 4.
    """
    if not _ONE_A_WORD.search(text):
        return len(text.split())
    count = 0
    for piece in text.split():
        rest, characters = _ONE_A_WORD.subn(" ", piece)
        count += characters + sum(map(_has_sound, rest.split())) if characters else 1
    return count


def _check(d: Dialogue, maximum_words: int, classroom: Filter | None, seen: Seen) -> None:
    """Raises BadRow for a dialogue that is to be dropped."""
    texts = (d.instruction, d.response)
    if (words := count_words(d.response)) > maximum_words:
        raise BadRow("response too long", f"{words} words")
    if marker := marker_in(d.instruction) or marker_in(d.response):
        raise BadRow("marker in text", marker)
    if any("```" in text for text in texts):
        raise BadRow("not speakable", "code")
    if not all(map(_has_sound, texts)):
        raise BadRow("not speakable", "no letter or digit")
    if classroom and (unsafe := classroom.reason(d.instruction) or classroom.reason(d.response)):
        raise BadRow("unsafe for classrooms", unsafe)
    if not seen.is_new("\n".join(texts).lower()):
        raise BadRow("duplicate", "")


def _has_sound(text: str) -> bool:
    return any(map(str.isalnum, text))
