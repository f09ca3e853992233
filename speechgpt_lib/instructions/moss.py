"""Written dialogues → question–answer pairs short enough to be spoken.

The chain-of-modality set was made from moss-002-sft-data: responses of at most 35 words, 37,969
samples (paper).  That data is CC BY-NC and comes with MOSS, not with this course.  Lists of
instructions such as Dolly's (CC BY-SA) are read as well.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ijson

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.instructions.chain import Dialogue
from speechgpt_lib.instructions.classroom import unsafe
from speechgpt_lib.instructions.interchange import LONGEST_LINE, read_lines
from speechgpt_lib.instructions.parsing import BadRow, marker_in
from speechgpt_lib.instructions.records import Seen

DEPTH = 100  # of brackets: without a limit, a file of nothing but [ would fill the memory
SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt")
REASONS = {  # why something is dropped, in the order of the steps
    "records": "too long, broken JSON, not an object, no text",
    "turn pairs": "no answer, missing end marker, turns out of order, text outside a turn, "
    "no text in a turn, piece too long, broken UTF-8, empty turn, about another text",
    "well-formed pairs": "response too long, marker in text, not speakable, "
    "unsafe for classrooms, duplicate",
}

_CHUNK = 1 << 16
_TOO_MUCH = f"more than {LONGEST_LINE >> 20} MB"
_HUMAN, _MOSS = (rf"(?:\[{name}\]|<\|{name}\|>)\s*:" for name in ("Human", "MOSS"))
_TURN_START = re.compile(f"(?={_HUMAN})")
_MARK = re.compile(rf"(?P<H>{_HUMAN})|(?P<h><eoh>)|(?P<M>{_MOSS})|(?P<m><eoa>|<ea>|<eom>)")
_FAULTS = {"": "text outside a turn", "H": "no answer", "Hh": "no answer"}
_FAULTS |= dict.fromkeys(("HM", "HhM", "HMm"), "missing end marker")
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")  # undecodable bytes, halves of surrogate pairs
_ONE_A_WORD = re.compile(
    "[々〇\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"  # Hangul
)


@dataclass
class Report:
    """What was read, dropped and kept: counts of each step, the first 20 places of each reason."""

    records: int = 0
    pairs: int = 0
    offered: int = 0  # pairs that came to `select`
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, place: str, bad: BadRow) -> None:
        """Count what stands at `place` under the reason of `bad`."""
        self.dropped[bad.reason] += 1
        if self.dropped[bad.reason] <= 20:
            places = self.places.setdefault(bad.reason, [])
            places.append(f"{place}: {bad.detail}" if bad.detail else place)

    def funnel(self) -> list[dict]:
        """{step, dropped, left} of each step that dropped anything, and of what is counted."""
        rows, counts = [], (self.records, self.pairs, self.offered)
        for (head, reasons), left in zip(REASONS.items(), counts, strict=True):
            steps = [head, *filter(self.dropped.get, reasons.split(", "))] if left else []
            for step in steps:
                left -= self.dropped[step]
                rows.append({"step": step, "dropped": self.dropped[step], "left": left})
        return [*rows, {"step": "kept", "dropped": 0, "left": self.kept}] if self.offered else rows


def read_moss(path: Path, report: Report) -> Iterator[Dialogue]:
    """Samples of a file, or of all files of a folder in order of their names; memory stays flat.

    A file is JSON (a list of records, or object after object), JSON lines, or text, turn after
    turn: [Human]: …<eoh> [MOSS]: …<eoa>.  A record has its turns as such text in `plain_text`
    (moss-002), or in `chat: {turn_1: {Human, MOSS}, …}` with <|Human|>: and <|MOSS|>: (moss-003),
    or it is one turn: `instruction` and `response` (Dolly) or `output` (Alpaca).

    A sample is a turn pair without the turns before it.  Ids are `<record id>-<turn>`; without a
    new, usable id a record goes by its number: `#7-1`.  In a folder the file's name stands before:
    `en_honesty.json/12-1`.  `report` counts what can't be understood; only a fault in the JSON of a
    list costs the rest of the list.  Raises UserError where there is nothing in one of the forms.
    """
    for file in _find_files(path):
        prefix = "" if file == path else f"{file.relative_to(path).as_posix()}/"
        for identity, place, piece in _pieces(file, report):
            report.pairs += 1
            try:
                yield Dialogue(prefix + identity, *_pair(piece), "moss", source=place)
            except BadRow as bad:
                report.drop(place, bad)


def select(
    dialogues: Iterable[Dialogue],
    *,
    maximum_words: int = 35,
    classroom: bool = False,
    report: Report,
) -> Iterator[Dialogue]:
    """The dialogues that can become speech, in their order.

    The others are counted in `report` under the first reason they meet: a response of more than
    `maximum_words` (35 in the paper, section 3.2); marker or unit of ours; nothing to pronounce, or
    code; unsafe for a `classroom`; said before.
    """
    if maximum_words < 1:
        raise UserError(f"no response has {maximum_words} words: choose 1 or more (the paper: 35)")
    seen = Seen()
    for d in dialogues:
        report.offered += 1
        both = f"{d.instruction}\n{d.response}"
        try:
            if (words := count_words(d.response)) > maximum_words:
                raise BadRow("response too long", f"{words} words")
            if marker := marker_in(both):
                raise BadRow("marker in text", marker)
            if "```" in both:
                raise BadRow("not speakable", "code")
            if not (_has_sound(d.instruction) and _has_sound(d.response)):
                raise BadRow("not speakable", "no letter or digit")
            if classroom and (reason := unsafe(d.instruction) or unsafe(d.response)):
                raise BadRow("unsafe for classrooms", reason)
            if not seen.is_new(both.lower()):
                raise BadRow("duplicate", "")
            report.kept += 1
            yield d
        except BadRow as bad:
            report.drop(d.source, bad)


def count_words(text: str) -> int:
    """Pieces between blanks; Chinese, Japanese and Korean characters, written without, count each.

    Stretches between such characters count if they have a letter or digit: "用Python写，好" is 4.
    """
    count = 0
    for piece in text.split():
        rest, characters = _ONE_A_WORD.subn(" ", piece)
        count += characters + sum(map(_has_sound, rest.split())) if characters else 1
    return count


def _has_sound(text: str) -> bool:
    return any(map(str.isalnum, text))


def _find_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"no MOSS data at {path}: download moss-002-sft-data yourself")
    found = [f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()]
    if path.is_dir() and not found:
        names = ", ".join("*" + suffix for suffix in SUFFIXES)
        raise UserError(f"{path} has no files named {names}: unpack moss-002-sft-data there")
    return sorted(found) or [path]


def _pieces(file: Path, report: Report) -> Iterator[tuple[str, str, str | BadRow]]:
    """(id, place, what should be a turn pair) of a file."""
    form, seen = _find_form(file), Seen()
    if form == "text":
        report.records += 1
        for turn, (line, piece) in enumerate(_read_text(file), 1):
            yield f"#1-{turn}", f"{file}:{line}", piece
        return
    records = _read_lines(file) if form == "lines" else _read_json(file, level=int(form == "list"))
    for number, (where, record) in enumerate(records, 1):
        report.records += 1
        try:
            turns = _turns(record)
        except BadRow as bad:
            report.drop(f"{file}:{where}", bad)
            continue
        found = record.get("id", record.get("conversation_id"))
        identity = str(found) if type(found) in (str, int) else ""
        # Never "#", which marks running numbers.
        if not (re.fullmatch(r"[\w.:+-]{1,80}", identity) and seen.is_new(identity)):
            identity = f"#{number}"
        for turn, piece in turns:
            yield f"{identity}-{turn}", f"{file}:{where}", piece


def _find_form(file: Path) -> str:
    """list, objects, lines or text, by how a file begins."""
    with reading(file, "is it yours?", "can't be read"), open(file, "rb") as opened:
        head = opened.read(_CHUNK).decode("utf-8-sig", errors="replace").lstrip()
    if re.match(f"{_HUMAN}|{_MOSS}", head):
        return "text"
    if re.match(r'\[\s*([\[{"\d\]-]|true\b|false\b|null\b|$)', head):
        return "list"
    if re.match(r'\{\s*(["}]|$)', head):
        # JSON over several lines breaks them after a bracket or a comma.
        return "objects" if head.partition("\n")[0].rstrip().endswith(("{", "[", ",")) else "lines"
    if re.search(rf"^\s*{_HUMAN}", head, re.MULTILINE):
        return "text"
    found = f"begins with {head[:30]!a}" if head else "is empty"
    wanted = "a JSON list, JSON lines, or text with [Human]: …<eoh> and [MOSS]: …<eoa>, in UTF-8"
    raise UserError(f"{file} is no MOSS data: it {found}, expected {wanted}")


def _read_text(file: Path) -> Iterator[tuple[int, str | BadRow]]:
    """The text form → (line number, what should be a turn pair)."""
    begun, piece = 1, ""
    for line in read_lines(file):
        text = "" if line.data is None else line.data.decode("utf-8-sig", "replace")
        if line.data is None or _TURN_START.match(text.lstrip()):
            yield from ((begun, pair) for pair in _cut(piece))
            piece = ""
        if line.data is None or len(piece) + len(text) > LONGEST_LINE:
            yield line.number, BadRow("piece too long", f"{_TOO_MUCH} without a new turn or line")
            piece = ""
        elif piece:
            piece += "\n" + text
        elif text.strip():
            begun, piece = line.number, text
    yield from ((begun, pair) for pair in _cut(piece))


def _read_lines(file: Path) -> Iterator[tuple[str, object]]:
    """JSON lines → (line number, record or BadRow)."""
    for line in read_lines(file):
        if line.data is None:
            yield str(line.number), BadRow("too long", f"a line of {_TOO_MUCH}")
        elif text := line.data.decode("utf-8-sig", "replace").strip():
            try:
                yield str(line.number), json.loads(text)
            except (ValueError, RecursionError) as error:  # also absurd depths and numbers
                yield str(line.number), BadRow("broken JSON", str(error)[:120])


def _read_json(file: Path, level: int) -> Iterator[tuple[str, object]]:
    """Records at `level` 1 (in a list) or 0 (one after another) → (record N, record or BadRow)."""
    number, depth, unfinished, chunk, fault = 0, 0, 0, None, None
    events, builder = ijson.sendable_list(), ijson.ObjectBuilder()
    # use_float refuses numbers beyond 64 bits; otherwise one of 4300 digits ends the process.
    parser = ijson.basic_parse_coro(events, use_float=True, multiple_values=level == 0)
    # Broken bytes cost one turn and not the file.
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as opened:
        while chunk != b"" and fault is None:
            chunk = opened.read(_CHUNK).encode()
            try:
                parser.send(chunk) if chunk else parser.close()
            except (ijson.JSONError, ValueError) as error:
                fault = BadRow("broken JSON", str(error).split("\n")[0].strip()[:120])
            unfinished += len(chunk)
            for event, value in events:  # also those before the fault
                depth -= event in ("end_map", "end_array")
                inside = depth >= level
                depth += event in ("start_map", "start_array")
                if depth > DEPTH:
                    fault = BadRow("broken JSON", f"brackets nested more than {DEPTH} deep")
                    break
                if inside:
                    builder.event(event, value)
                if inside and depth == level:
                    number, unfinished = number + 1, len(chunk)
                    yield f"record {number}", builder.value
                    builder = ijson.ObjectBuilder()
            events.clear()
            if unfinished > LONGEST_LINE and fault is None:
                fault = BadRow("too long", f"a record of {_TOO_MUCH}")
    if fault:
        yield f"record {number + 1}", fault


def _turns(record: object) -> list[tuple[int, str | BadRow]]:
    """A record → (turn number, what should be a turn pair), in order.  Raises BadRow."""
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, dict):
        found = type(record).__name__
        raise BadRow("not an object", f"found {found}, expected a record with plain_text or chat")
    text, chat = record.get("plain_text"), record.get("chat")
    if isinstance(text, str) and text.strip():
        return list(enumerate(_cut(text), 1))
    if isinstance(record.get("instruction"), str):
        return [(1, _instruction(record))]
    names = chat if isinstance(chat, dict) else ()
    numbers = sorted(int(name[5:]) for name in names if re.fullmatch("turn_[1-9][0-9]{0,8}", name))
    if not numbers:
        found = ", ".join(map(repr, list(record)[:5])) or "no keys"
        forms = "neither plain_text, chat with turns nor instruction"
        raise BadRow("no text", f"{forms}; it has {found}")
    return [(number, _chat_turn(chat[f"turn_{number}"])) for number in numbers]


def _instruction(record: dict) -> str | BadRow:
    """A record of Dolly's or Alpaca's; one about a text beside it can't be asked aloud."""
    if str(record.get("context") or record.get("input") or "").strip():
        return BadRow("about another text", "it has a context")
    answer = record.get("response", record.get("output"))
    if not isinstance(answer, str):
        return BadRow("no text in a turn", "expected instruction and response, both text")
    return f"[Human]: {record['instruction']}<eoh> [MOSS]: {answer}<eoa>"


def _chat_turn(turn: object) -> str | BadRow:
    said = [turn.get(name) for name in ("Human", "MOSS")] if isinstance(turn, dict) else [None]
    if all(isinstance(text, str) for text in said):
        return "\n".join(said)
    return BadRow("no text in a turn", "expected Human and MOSS, both text")


def _cut(text: str) -> list[str]:
    """Text of several turn pairs, cut where a person begins to speak."""
    return [piece for piece in _TURN_START.split(text) if piece.strip()]


def _pair(piece: str | BadRow) -> tuple[str, str]:
    """[Human]: …<eoh> [MOSS]: …<eoa> (or <ea>, <eom>) → instruction, response.  Raises BadRow."""
    if isinstance(piece, BadRow):
        raise piece
    marks = list(_MARK.finditer(piece))
    shape = "".join(mark.lastgroup for mark in marks)
    if shape != "HhMm":
        found = " ".join(mark[0] for mark in marks[:6]) or repr(piece.strip()[:40])
        raise BadRow(_FAULTS.get(shape, "turns out of order"), f"found {found}")
    texts = _MARK.split(piece)[::5]  # between them are the four groups of a mark
    before, instruction, between, response, after = (" ".join(text.split()) for text in texts)
    if stray := before or between or after:
        raise BadRow("text outside a turn", f"found {stray[:40]!r}")
    if broken := _BROKEN.search(instruction + response):
        raise BadRow("broken UTF-8", f"found {broken[0]!a} in the text")
    if not (instruction and response):
        raise BadRow("empty turn", "no response" if instruction else "no instruction")
    return instruction, response
