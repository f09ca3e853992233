"""moss-002-sft-data → written question–answer pairs short enough to be spoken: what the chain-of-modality set was made from.

`read_moss` reads, `select` keeps what can be spoken (paper: responses of at most 35 words, 37,969 samples), and a `Report` counts what
either drops, by reason and with places.  The data is CC BY-NC and comes with MOSS, not with this course.  Forms understood:

    JSON        a list of records, or an object a record, laid out over lines or not
    JSON lines  a record a line
    text        [Human]: …<eoh> [MOSS]: …<eoa>, over lines, turn after turn

A record holds all its turns in `plain_text`, written as in the text form (moss-002), or in `chat: {turn_1: {Human, MOSS}, …}`, where
turns begin with <|Human|>: and <|MOSS|>: (moss-003).  `<eoa>`, `<ea>` and `<eom>` all end an answer.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ijson

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.classroom import Filter
from speechgpt_lib.instructions.interchange import LONGEST_LINE, read_lines
from speechgpt_lib.instructions.parsing import BadRow, marker_in

MAXIMUM_WORDS = 35  # of a response (paper, section 3.2)
RECORD_REASONS = ("too long", "broken JSON", "not an object", "no text")
TURN_REASONS = (
    "no answer",
    "missing end marker",
    "turns out of order",
    "text outside a turn",
    "no text in a turn",
    "piece too long",
)
TURN_REASONS += ("broken UTF-8", "empty turn")
SELECT_REASONS = (
    "response too long",
    "marker in text",
    "not speakable",
    "unsafe for classrooms",
    "duplicate",
)
PLACES = 20  # remembered a reason
DEPTH = 100  # of brackets: without a limit, a file of nothing but [ would fill the memory
SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt")

_CHUNK = 1 << 16
_HUMAN, _MOSS = (rf"(?:\[{name}\]|<\|{name}\|>)\s*:" for name in ("Human", "MOSS"))
_MARK = re.compile(rf"(?P<H>{_HUMAN})|(?P<h><eoh>)|(?P<M>{_MOSS})|(?P<m><eoa>|<ea>|<eom>)")
_TURN_START = re.compile(f"(?={_HUMAN})")
_BROKEN = re.compile(
    "[\ufffd\ud800-\udfff]"
)  # what stands for undecodable bytes, and halves of surrogate pairs
_ONE_A_WORD = re.compile(
    "[々〇\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # 々 and zero, Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"  # Hangul
)
_ID = re.compile(r"[\w.:+-]{1,80}")  # never "#", which marks running numbers


@dataclass(frozen=True)
class Dialogue:
    """One question and its answer, white space collapsed; `source` is path:line or path:record N."""

    id: str
    instruction: str
    response: str
    source: str


@dataclass
class Report:
    """What was read, dropped and kept: counts of each step, and the first 20 places of each reason."""

    records: int = 0
    pairs: int = 0
    offered: int = 0  # pairs that came to `select`
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, place: str, detail: str = "") -> None:
        self.dropped[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append(f"{place}: {detail}" if detail else place)

    def funnel(self) -> list[dict]:
        """Rows {step, dropped, left} in order; a step that dropped nothing is left out.  What is counted changes at each head row."""
        rows = []
        stages = (
            ("records", self.records, RECORD_REASONS),
            ("turn pairs", self.pairs, TURN_REASONS),
        )
        for head, left, reasons in (*stages, ("well-formed pairs", self.offered, SELECT_REASONS)):
            if left:
                rows.append({"step": head, "dropped": 0, "left": left})
            for reason in filter(self.dropped.get, reasons):
                left -= self.dropped[reason]
                rows.append({"step": reason, "dropped": self.dropped[reason], "left": left})
        return [*rows, {"step": "kept", "dropped": 0, "left": self.kept}] if self.offered else rows

    def to_json(self) -> dict:
        return {
            "funnel": self.funnel(),
            "places": {reason: list(places) for reason, places in sorted(self.places.items())},
        }


# --- reading ----------------------------------------------------------------------------------------------------------------------
def read_moss(path: Path | str, report: Report) -> Iterator[Dialogue]:
    """Samples of a file, or of all .json, .jsonl, .ndjson and .txt files of a folder in order of their names; memory stays flat.

    A sample is one turn pair: what was said in earlier turns of its dialogue is not kept, so "and why?" stands without what it asks
    about.  Ids are `<record id>-<turn>`; a record without a usable id, or with one its file had before, goes by its running number,
    written `#7-1`.  A text file counts as one record.  In a folder the file's name stands before: `en_honesty.json/12-1`.

    What can't be understood is counted in `report`, and reading goes on; after a fault in the JSON of a list the rest of the list is lost.

    Raises:
        UserError: nothing there, or a file in none of the forms.
    """
    path = Path(path)
    for file in _files(path):
        prefix = "" if file == path else f"{file.relative_to(path).as_posix()}/"
        for identity, place, piece in _pieces(file, report):
            report.pairs += 1
            try:
                instruction, response = _pair(piece)
            except BadRow as bad:
                report.drop(bad.reason, place, bad.detail)
            else:
                yield Dialogue(prefix + identity, instruction, response, place)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(
            f"no MOSS data at {path}: expected a file or folder of moss-002-sft-data, which you have to download yourself"
        )
    found = (
        sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if path.is_dir()
        else [path]
    )
    if not found:
        raise UserError(
            f"{path} has no files named {', '.join('*' + suffix for suffix in SUFFIXES)}: unpack moss-002-sft-data there"
        )
    return found


def _form(file: Path) -> str:
    """list, objects, lines or text, by how a file begins."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(_CHUNK).decode("utf-8-sig", errors="replace").lstrip()
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({error.strerror}): check that it is a file and that you may read it"
        ) from None
    if re.match(f"{_HUMAN}|{_MOSS}", head):
        return "text"
    if re.match(r'\[\s*([\[{"\d\]-]|true\b|false\b|null\b|$)', head):
        return "list"
    if re.match(
        r'\{\s*(["}]|$)', head
    ):  # JSON over several lines breaks them after a bracket or a comma
        return "objects" if head.partition("\n")[0].rstrip().endswith(("{", "[", ",")) else "lines"
    if re.search(rf"^\s*{_HUMAN}", head, re.MULTILINE):
        return "text"
    expected = "a JSON list, JSON lines, or text with [Human]: …<eoh> and [MOSS]: …<eoa>, in UTF-8"
    raise UserError(
        f"{file} is no MOSS data: it {f'begins with {head[:30]!a}' if head else 'is empty'}, expected {expected}"
    )


def _pieces(file: Path, report: Report) -> Iterator[tuple[str, str, str | BadRow]]:
    """(id, place, what should be one turn pair) of a file."""
    form, ids = _form(file), _Ids()
    if form == "text":
        report.records += 1
        for turn, (line, piece) in enumerate(_text_pieces(file), 1):
            yield f"#1-{turn}", f"{file}:{line}", piece
        return
    records = _lines(file) if form == "lines" else _json_records(file, level=int(form == "list"))
    for number, (where, record) in enumerate(records, 1):
        report.records += 1
        place = f"{file}:{where}"
        try:
            turns = _turns(record)
        except BadRow as bad:
            report.drop(bad.reason, place, bad.detail)
            continue
        identity = ids.name(record, number)
        for turn, piece in turns:
            yield f"{identity}-{turn}", place, piece


class _Ids:
    """Which record ids a file had before: a byte for each up to 16 million, 8-byte hashes of the others."""

    def __init__(self):
        self.numbers, self.others = bytearray(), set()

    def name(self, record: dict, running: int) -> str:
        raw = record.get("id", record.get("conversation_id"))
        text = (
            raw
            if isinstance(raw, str)
            else str(raw)
            if type(raw) is int and abs(raw) < 1 << 63
            else ""
        )
        return text if _ID.fullmatch(text) and self._is_new(text) else f"#{running}"

    def _is_new(self, text: str) -> bool:
        if re.fullmatch("0|[1-9][0-9]{0,7}", text) and (number := int(text)) < 1 << 24:
            self.numbers.extend(bytes(max(0, number + 1 - len(self.numbers))))
            before, self.numbers[number] = self.numbers[number], 1
            return not before
        count = len(self.others)
        self.others.add(_hash(text))
        return len(self.others) > count


def _lines(file: Path) -> Iterator[tuple[str, object]]:
    """JSON lines → (line number, record or what is wrong)."""
    for line in read_lines(file):
        if line.data is None:
            yield (
                str(line.number),
                BadRow("too long", f"a line of more than {LONGEST_LINE >> 20} MB"),
            )
        elif text := _decode(line.data).strip():
            try:
                yield str(line.number), json.loads(text)
            except (ValueError, RecursionError) as error:  # also absurd depths and numbers
                yield str(line.number), BadRow("broken JSON", str(error)[:120])


def _json_records(file: Path, level: int) -> Iterator[tuple[str, object]]:
    """Records at `level` 1 (in a list) or 0 (one after another) → (record N, record or what is wrong)."""
    number, unfinished, found = 0, 0, []
    next(collector := _collect(found, level))
    # use_float refuses numbers beyond 64 bits; without it ijson 3.6 takes the process down at one of more than 4300 digits.
    parser = ijson.basic_parse_coro(collector, use_float=True, multiple_values=level == 0)
    for chunk in _chunks(file):
        fault = None
        try:
            parser.send(chunk) if chunk else parser.close()
        except (ijson.JSONError, BadRow, ValueError) as error:
            fault = BadRow(
                "broken JSON", getattr(error, "detail", str(error).split("\n")[0].strip())[:120]
            )
        unfinished = len(chunk) if found else unfinished + len(chunk)
        for record in found:  # also those before the fault
            number += 1
            yield f"record {number}", record
        found.clear()
        if fault or unfinished > LONGEST_LINE:
            yield (
                f"record {number + 1}",
                fault or BadRow("too long", f"a record of more than {LONGEST_LINE >> 20} MB"),
            )
            return


def _collect(found: list, level: int) -> Generator[None, tuple[str, object], None]:
    """Takes ijson's events, appends the values at `level` to `found`."""
    depth, builder = 0, ijson.ObjectBuilder()
    while True:
        event, value = yield
        depth -= event in ("end_map", "end_array")
        inside = depth >= level
        depth += event in ("start_map", "start_array")
        if depth > DEPTH:
            raise BadRow("broken JSON", f"brackets nested more than {DEPTH} deep")
        if inside:
            builder.event(event, value)
            if depth == level:
                found.append(builder.value)
                builder = ijson.ObjectBuilder()


def _chunks(file: Path) -> Iterator[bytes]:
    """A file's bytes as sound UTF-8 without BOM, broken bytes replaced so that they cost one turn and not the file; b"" ends it."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    with open(file, "rb") as opened:
        while data := opened.read(_CHUNK):
            if chunk := decoder.decode(data).encode():
                yield chunk
    if chunk := decoder.decode(b"", final=True).encode():
        yield chunk
    yield b""


def _text_pieces(file: Path) -> Iterator[tuple[int, str | BadRow]]:
    """The text form → (line number, what should be one turn pair)."""
    begun, size, lines = 1, 0, []
    for line in read_lines(file):
        text = "" if line.data is None else _decode(line.data)
        if lines and (line.data is None or _TURN_START.match(text.lstrip())):
            yield from ((begun, piece) for piece in _cut("\n".join(lines)))
            lines, size = [], 0
        if line.data is None or size + len(text) > LONGEST_LINE:
            yield (
                line.number,
                BadRow(
                    "piece too long",
                    f"more than {LONGEST_LINE >> 20} MB without a new turn or line",
                ),
            )
            lines, size = [], 0
        elif lines or text.strip():
            begun, size = begun if lines else line.number, size + len(text)
            lines.append(text)
    yield from ((begun, piece) for piece in _cut("\n".join(lines)))


def _turns(record: object) -> list[tuple[int, str | BadRow]]:
    """A record → (turn number, what should be one turn pair), in order.  Raises BadRow."""
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, dict):
        raise BadRow(
            "not an object",
            f"found {type(record).__name__}, expected a record with plain_text or chat",
        )
    text, chat = record.get("plain_text"), record.get("chat")
    if isinstance(text, str) and text.strip():
        return list(enumerate(_cut(text), 1))
    if isinstance(chat, dict):
        numbers = sorted(int(key[5:]) for key in chat if re.fullmatch("turn_[1-9][0-9]{0,8}", key))
        if numbers:
            return [(number, _chat_turn(chat[f"turn_{number}"])) for number in numbers]
    raise BadRow(
        "no text",
        f"neither plain_text nor chat with turns; it has {', '.join(map(repr, list(record)[:5])) or 'no keys'}",
    )


def _chat_turn(turn: object) -> str | BadRow:
    said = [turn.get(name) for name in ("Human", "MOSS")] if isinstance(turn, dict) else []
    if len(said) == 2 and all(isinstance(text, str) for text in said):
        return "\n".join(said)
    return BadRow("no text in a turn", "expected Human and MOSS, both text")


def _cut(text: str) -> list[str]:
    """Text of several turn pairs, cut where a person begins to speak."""
    return [piece for piece in _TURN_START.split(text) if piece.strip()]


def _pair(piece: str | BadRow) -> tuple[str, str]:
    """[Human]: …<eoh> [MOSS]: …<eoa> → instruction, response.  Raises BadRow."""
    if isinstance(piece, BadRow):
        raise piece
    marks = list(_MARK.finditer(piece))
    shape = "".join(mark.lastgroup for mark in marks)
    if shape != "HhMm":
        faults = {"": "text outside a turn", "H": "no answer", "Hh": "no answer"} | dict.fromkeys(
            ("HM", "HhM", "HMm"), "missing end marker"
        )
        raise BadRow(
            faults.get(shape, "turns out of order"),
            f"found {' '.join(mark[0] for mark in marks[:6]) or repr(piece.strip()[:40])}",
        )
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(piece)]
    before, instruction, between, response, after = (
        " ".join(piece[a:b].split()) for a, b in zip(edges[::2], edges[1::2], strict=True)
    )
    if stray := before or between or after:
        raise BadRow("text outside a turn", f"found {stray[:40]!r}")
    if broken := _BROKEN.search(instruction + response):
        raise BadRow("broken UTF-8", f"found {broken[0]!a} in the text")
    if not (instruction and response):
        raise BadRow("empty turn", "no response" if instruction else "no instruction")
    return instruction, response


def _decode(data: bytes) -> str:
    return data.removeprefix(codecs.BOM_UTF8).decode(errors="replace")


# --- selecting --------------------------------------------------------------------------------------------------------------------
def select(
    dialogues: Iterable[Dialogue],
    *,
    maximum_words: int = MAXIMUM_WORDS,
    classroom: Filter | None = None,
    report: Report,
) -> Iterator[Dialogue]:
    """The dialogues that can become speech, in their order; each of the others is counted in `report` under the first reason it meets.

    Reasons in order: the response has more than `maximum_words` words; a marker or unit of ours in the text; nothing to pronounce, or
    code; the `classroom` filter, if given; the same instruction and response as before, but for case (remembered as 8-byte hashes).
    """
    if maximum_words < 1:
        raise UserError(
            f"responses of at most {maximum_words} words: nothing would be left, choose 1 or more (the paper: {MAXIMUM_WORDS})"
        )
    seen: set[int] = set()
    for dialogue in dialogues:
        report.offered += 1
        if fault := _fault(dialogue, maximum_words, classroom, seen):
            report.drop(fault[0], dialogue.source, fault[1])
        else:
            report.kept += 1
            yield dialogue


def count_words(text: str) -> int:
    """How many words: pieces between white space, but Chinese, Japanese and Korean characters count one each.

    Chinese is written without blanks, so a whole answer would be one word.  Within a piece that has such characters, stretches
    between them count if they have a letter or digit: "用Python写，好" is 4.
    """
    if not _ONE_A_WORD.search(text):
        return len(text.split())
    count = 0
    for piece in text.split():
        rest, characters = _ONE_A_WORD.subn(" ", piece)
        count += (
            characters + sum(_has_sound(stretch) for stretch in rest.split()) if characters else 1
        )
    return count


def _fault(
    dialogue: Dialogue, maximum_words: int, classroom: Filter | None, seen: set[int]
) -> tuple[str, str] | None:
    """Why a dialogue is dropped, as (reason, detail), or None."""
    texts = (dialogue.instruction, dialogue.response)
    if (words := count_words(dialogue.response)) > maximum_words:
        return "response too long", f"{words} words"
    if marker := marker_in(texts[0]) or marker_in(texts[1]):
        return "marker in text", marker
    if any("```" in text for text in texts):
        return "not speakable", "code"
    if not all(map(_has_sound, texts)):
        return "not speakable", "no letter or digit"
    if classroom and (unsafe := classroom.reason(texts[0]) or classroom.reason(texts[1])):
        return "unsafe for classrooms", unsafe
    key, count = _hash("\n".join(texts).lower()), len(seen)
    seen.add(key)
    return ("duplicate", "") if len(seen) == count else None


def _has_sound(text: str) -> bool:
    return any(map(str.isalnum, text))


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
    )
