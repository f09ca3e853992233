"""Files of moss-002-sft-data → records and pieces of text, each of which should be a turn pair.

A file is JSON (a list of records, or object after object), JSON lines, or text, turn after turn:
[Human]: …<eoh> [MOSS]: …<eoa>.  A record has its turns as such text in `plain_text` (moss-002), or
in `chat: {turn_1: {Human, MOSS}, …}` with <|Human|>: and <|MOSS|>: (moss-003).  What can't be
understood stands in its place as a BadRow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import ijson

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.interchange import LONGEST_LINE, read_lines
from speechgpt_lib.instructions.parsing import BadRow

DEPTH = 100  # of brackets: without a limit, a file of nothing but [ would fill the memory
SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt")
HUMAN, MOSS = (rf"(?:\[{name}\]|<\|{name}\|>)\s*:" for name in ("Human", "MOSS"))

_CHUNK = 1 << 16
_TURN_START = re.compile(f"(?={HUMAN})")
_TOO_MUCH = f"more than {LONGEST_LINE >> 20} MB"


def find_files(path: Path) -> list[Path]:
    """`path` itself, or the files of a folder in order of their names."""
    if not path.exists():
        raise UserError(f"no MOSS data at {path}: download moss-002-sft-data yourself")
    if not path.is_dir():
        return [path]
    found = (f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if files := sorted(found):
        return files
    names = ", ".join("*" + suffix for suffix in SUFFIXES)
    raise UserError(f"{path} has no files named {names}: unpack moss-002-sft-data there")


def find_form(file: Path) -> str:
    """list, objects, lines or text, by how a file begins."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(_CHUNK).decode("utf-8-sig", errors="replace").lstrip()
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror}): is it yours?") from None
    if re.match(f"{HUMAN}|{MOSS}", head):
        return "text"
    if re.match(r'\[\s*([\[{"\d\]-]|true\b|false\b|null\b|$)', head):
        return "list"
    if re.match(r'\{\s*(["}]|$)', head):
        # JSON over several lines breaks them after a bracket or a comma.
        return "objects" if head.partition("\n")[0].rstrip().endswith(("{", "[", ",")) else "lines"
    if re.search(rf"^\s*{HUMAN}", head, re.MULTILINE):
        return "text"
    found = f"begins with {head[:30]!a}" if head else "is empty"
    wanted = "a JSON list, JSON lines, or text with [Human]: …<eoh> and [MOSS]: …<eoa>, in UTF-8"
    raise UserError(f"{file} is no MOSS data: it {found}, expected {wanted}")


def read_records(file: Path, form: str) -> Iterator[tuple[str, object]]:
    """(line number or record N, record or BadRow) of a file of JSON."""
    return _lines(file) if form == "lines" else _json_records(file, level=int(form == "list"))


def turns_of(record: object) -> list[tuple[int, str | BadRow]]:
    """A record → (turn number, what should be a turn pair), in order.  Raises BadRow."""
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, dict):
        found = type(record).__name__
        raise BadRow("not an object", f"found {found}, expected a record with plain_text or chat")
    text, chat = record.get("plain_text"), record.get("chat")
    if isinstance(text, str) and text.strip():
        return list(enumerate(_cut(text), 1))
    if isinstance(chat, dict):
        numbers = sorted(int(key[5:]) for key in chat if re.fullmatch("turn_[1-9][0-9]{0,8}", key))
        if numbers:
            return [(number, _chat_turn(chat[f"turn_{number}"])) for number in numbers]
    found = ", ".join(map(repr, list(record)[:5])) or "no keys"
    raise BadRow("no text", f"neither plain_text nor chat with turns; it has {found}")


def read_text(file: Path) -> Iterator[tuple[int, str | BadRow]]:
    """The text form → (line number, what should be a turn pair)."""
    begun, size, lines = 1, 0, []
    for line in read_lines(file):
        text = "" if line.data is None else line.data.decode("utf-8-sig", "replace")
        if lines and (line.data is None or _TURN_START.match(text.lstrip())):
            yield from ((begun, piece) for piece in _cut("\n".join(lines)))
            lines, size = [], 0
        if line.data is None or size + len(text) > LONGEST_LINE:
            yield line.number, BadRow("piece too long", f"{_TOO_MUCH} without a new turn or line")
            lines, size = [], 0
        elif lines or text.strip():
            begun, size = begun if lines else line.number, size + len(text)
            lines.append(text)
    yield from ((begun, piece) for piece in _cut("\n".join(lines)))


def _lines(file: Path) -> Iterator[tuple[str, object]]:
    """JSON lines → (line number, record or BadRow)."""
    for line in read_lines(file):
        if line.data is None:
            yield str(line.number), BadRow("too long", f"a line of {_TOO_MUCH}")
        elif text := line.data.decode("utf-8-sig", "replace").strip():
            try:
                yield str(line.number), json.loads(text)
            except (ValueError, RecursionError) as error:  # also absurd depths and numbers
                yield str(line.number), BadRow("broken JSON", str(error)[:120])


def _json_records(file: Path, level: int) -> Iterator[tuple[str, object]]:
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


def _chat_turn(turn: object) -> str | BadRow:
    said = [turn.get(name) for name in ("Human", "MOSS")] if isinstance(turn, dict) else [None]
    if all(isinstance(text, str) for text in said):
        return "\n".join(said)
    return BadRow("no text in a turn", "expected Human and MOSS, both text")


def _cut(text: str) -> list[str]:
    """Text of several turn pairs, cut where a person begins to speak."""
    return [piece for piece in _TURN_START.split(text) if piece.strip()]
