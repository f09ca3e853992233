"""Sets ↔ the released JSONL (`prefix`, `plain_text`), byte for byte, and a checker of such files.  All of it streams.

JSON can be written in several ways (blanks after separators, letters escaped or not); the first lines of a file tell which, and a line
that we would write otherwise is kept as it was found.  So what is imported can be exported to the same bytes.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import chain, sets
from speechgpt_lib.instructions.parsing import BadRow, marker_in, parse_row
from speechgpt_lib.instructions.statistics import Statistics
from speechgpt_lib.instructions.templates import CHAIN_END, META_PREFIX, TEXT_TAIL
from speechgpt_lib.runs.artefacts import atomic_path, hash_file, hash_json

LONGEST_LINE = 1 << 24  # bytes
KEYS = ("prefix", "plain_text")
SHARD_ROWS = 50_000


@dataclass(frozen=True)
class Dialect:
    """How a JSONL file writes its rows."""

    ascii_only: bool = False
    compact: bool = False
    text_first: bool = False
    carriage_return: bool = False
    ends_in_newline: bool = True

    def line(self, prefix: str, text: str) -> str:
        row = (
            {"plain_text": text, "prefix": prefix}
            if self.text_first
            else {"prefix": prefix, "plain_text": text}
        )
        separators = (",", ":") if self.compact else None
        return (
            json.dumps(row, ensure_ascii=self.ascii_only, separators=separators)
            + "\r" * self.carriage_return
        )


@dataclass(frozen=True)
class Line:
    """A line of a JSONL file: number from 1, and its bytes without the newline (None where it is too long)."""

    number: int
    data: bytes | None


@dataclass
class Checked:
    """What a check has found: counts of reasons and the first places of each, and statistics of the good rows."""

    lines: int = 0
    good: int = 0
    reasons: Counter = field(default_factory=Counter)
    templates: Counter = field(default_factory=Counter)
    prefixes: Counter = field(default_factory=Counter)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())


# --- lines ------------------------------------------------------------------------------------------------------------------------
def read_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """The lines of a file of any size; of a line longer than `longest` bytes only its number is given."""
    with open(path, "rb") as file:
        for number in itertools.count(1):
            if not (data := file.readline(longest + 1)):
                return
            too_long = len(data) > longest and not data.endswith(b"\n")
            while too_long and data and not data.endswith(b"\n"):
                data = file.readline(1 << 20)
            yield Line(number, None if too_long else data.removesuffix(b"\n"))


def parse_line(
    line: Line, unit_count: int | None = None, templates: str | None = None
) -> tuple[dict, str]:
    """A line → (record, prefix).  Raises BadRow."""
    if line.data is None:
        raise BadRow("line too long", f"more than {LONGEST_LINE >> 20} MB: is a newline missing?")
    try:
        text = line.data.decode()
    except UnicodeDecodeError as error:
        raise BadRow("broken UTF-8", f"{error.reason} at byte {error.start} of the line") from None
    if not text.strip():
        raise BadRow("empty line", "expected one JSON object a line")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # also absurd depths and numbers
        raise BadRow("not JSON", str(error).split("\n")[0][:120]) from None
    if not isinstance(row, dict):
        raise BadRow(
            "not an object", f"found {type(row).__name__}, expected keys prefix and plain_text"
        )
    if missing := [key for key in KEYS if key not in row]:
        raise BadRow(
            "missing key",
            f"no {missing[0]}; it has {', '.join(map(repr, list(row)[:5])) or 'no keys'}",
        )
    if wrong := [key for key in KEYS if not isinstance(row[key], str)]:
        raise BadRow("not text", f"{wrong[0]} is {type(row[wrong[0]]).__name__}, expected text")
    if strange := marker_in(row["prefix"]):
        raise BadRow("marker in prefix", f"the prefix has {strange} in it")
    try:
        (row["prefix"] + row["plain_text"]).encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "broken UTF-8", f"half of a surrogate pair ({error.object[error.start]!a})"
        ) from None
    return parse_row(row["plain_text"], unit_count, templates), row["prefix"]


def check_jsonl(
    path: Path, unit_count: int | None = None, on_bad: Callable[[Line, BadRow], None] | None = None
) -> Checked:
    """Look at every line of a JSONL file, ours or the released; `on_bad` is told of each line that is not well-formed."""
    path = _existing(path)
    found = Checked()
    for line in read_lines(path):
        found.lines += 1
        try:
            record, prefix = parse_line(line, unit_count)
        except BadRow as error:
            found.reasons[error.reason] += 1
            if on_bad is not None:
                on_bad(line, error)
            continue
        found.good += 1
        found.templates[record["templates"]] += 1
        found.prefixes[prefix if prefix in ("", META_PREFIX) else "another"] += 1
        _count(found.statistics, record)
    if found.lines == 0:
        raise UserError(f"{path} is empty: expected one JSON object a line")
    return found


def _count(statistics: Statistics, record: dict) -> None:
    if "task" in record:
        statistics.add(
            [record["task"]], units=[len(record["units"])], words=[len(record["text"].split())]
        )
        statistics.add_units(record["units"])
        return
    words = {
        "instruction_words": [len(record["instruction"].split())],
        "response_words": [len(record["response"].split())],
    }
    lengths = {
        name: [len(record[name])]
        for name in ("instruction_units", "response_units")
        if len(record[name])
    }
    statistics.add([record["format"]], **words, **lengths)
    statistics.add_units(np.concatenate([record["instruction_units"], record["response_units"]]))


def summarise_jsonl(path: Path, unit_count: int | None = None) -> dict:
    """What the data card of a JSONL file needs; lines that are not well-formed count as quarantined."""
    found = check_jsonl(path, unit_count)
    groups = found.statistics.groups
    used = found.statistics.settle().unit_usage
    return {
        "kind": "cross_modal" if set(groups) <= {"asr", "tts"} else "chain",
        "inventory": "not said in the file",
        "unit_count": unit_count or max(used, default=-1) + 1,
        "templates": ", ".join(sorted(found.templates)),
        "table_hash": "import it to know",
        "held_out": 0,
        "held_out_rule": "not said in the file",
        "quarantined": dict(sorted(found.reasons.items())),
        "sources": [{"title": str(path)}],
        "statistics": found.statistics.summary(),
    }


# --- export -----------------------------------------------------------------------------------------------------------------------
def export_jsonl(
    folder: Path,
    out: Path,
    templates: str | None = None,
    prefix: str | None = None,
    part: str = "rows",
) -> dict:
    """Write a set as JSONL.

    Args:
        templates: "paper" or "release"; None takes the set's own.
        prefix: of every row; None takes the set's own, or the release's meta prefix for its templates and none for the paper's.
        part: "rows" or "held_out".

    Raises:
        UserError: the set has formats that the templates lack.
    """
    facts, summary = sets.set_facts(folder), sets.read_summary(folder)
    templates = templates or facts.templates
    if templates not in TEXT_TAIL:
        raise UserError(f"unknown templates {templates!r}: choose {', '.join(TEXT_TAIL)}")
    formats = [name for name in summary["statistics"]["counts"] if name != "speech_speech"]
    if facts.kind == "chain" and templates == "release" and formats:
        raise UserError(
            f"{folder} has rows in the formats {', '.join(formats)}, for which the release has no text: export with --templates paper, "
            "or build the set with --templates release"
        )
    dialect = Dialect(**summary.get("dialect", {}))
    if prefix is None:
        prefix = summary.get("prefix", META_PREFIX if templates == "release" else "")
    as_found = templates == facts.templates and prefix == summary.get("prefix", prefix)
    rows = 0
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for line in _export_lines(folder, facts, templates, prefix, part, dialect, as_found):
            file.write(("\n" if rows else "") + line)
            rows += 1
        if rows and dialect.ends_in_newline:
            file.write("\n")
    return {"file": str(out), "rows": rows, "templates": templates, "sha256": hash_file(out)}


def _export_lines(
    folder: Path,
    facts: sets.SetFacts,
    templates: str,
    prefix: str,
    part: str,
    dialect: Dialect,
    as_found: bool,
) -> Iterator[str]:
    tail = TEXT_TAIL[templates] if facts.kind == "cross_modal" else CHAIN_END
    for record in sets.read_set(folder, part=part):
        kept = record.get("verbatim") if as_found else None
        yield (
            kept
            if kept is not None
            else dialect.line(prefix, sets.record_to_row(record, templates).text(tail))
        )


# --- import -----------------------------------------------------------------------------------------------------------------------
def import_jsonl(
    path: Path, out: Path, inventory_id: str, unit_count: int, shard_rows: int = SHARD_ROWS
) -> dict:
    """Read a JSONL file into a set; ids are line numbers.  What is not well-formed goes to quarantine with line and reason.

    Raises:
        UserError: the file's first good row is of one kind and another of the other, no row is good, or `out` holds another set.
    """
    path = _existing(path)
    first = _first_good(path, unit_count)
    kind, templates, prefix = _kind(first[0]), first[0]["templates"], first[1]
    dialect = _dialect(path, templates)
    settings = hash_json(
        {"file": hash_file(path), "shard_rows": shard_rows, "dialect": vars(dialect)}
    )
    facts = sets.SetFacts(kind, inventory_id, unit_count, templates, settings)
    key = hash_json(facts.metadata())
    lines, number = read_lines(path), 0
    while (group := list(itertools.islice(lines, shard_rows))) or number == 0:
        if not sets.is_made(out, number, key):
            with sets.ShardWriter(out, number, facts, key, extra=sets.VERBATIM) as writer:
                for part in _batched(group, 1000):
                    _import_part(writer, part, str(path), prefix, dialect)
        number += 1
    sources = [{"name": path.name, "title": f"imported from {path.name}", "path": str(path)}]
    return sets.finish(
        out, number, facts, sources, "as in the file", dialect=vars(dialect), prefix=prefix
    )


def _import_part(
    writer: sets.ShardWriter, lines: tuple[Line, ...], source: str, prefix: str, dialect: Dialect
) -> None:
    rows, facts = [], writer.facts
    tail = TEXT_TAIL[facts.templates] if facts.kind == "cross_modal" else CHAIN_END
    for line in lines:
        try:
            record, own_prefix = parse_line(line, facts.unit_count, facts.templates)
            if _kind(record) != facts.kind:
                raise BadRow(
                    "another kind",
                    f"the file begins with rows of a {facts.kind} set, this is one of the other",
                )
        except BadRow as error:
            writer.refuse(source, f"line {line.number}", "", error.reason, error.detail)
            continue
        written = dialect.line(prefix, sets.record_to_row(record, facts.templates).text(tail))
        found = line.data.decode()
        same = written == found and own_prefix == prefix
        extra = {"voice": ""} if facts.kind == "cross_modal" else {"kind": ""}
        rows.append(
            record | extra | {"id": f"{line.number:09d}", "verbatim": None if same else found}
        )
    writer.add(pyarrow.Table.from_pylist(rows, writer.schema))
    if facts.kind == "chain":
        chain.count_rows(writer, rows)
        return
    counts = writer.counts
    for row in rows:
        _count(counts.statistics, row)
        counts.digest += sets.row_digest(
            (row["task"], row["description"], row["text"]), row["units"]
        )
    counts.digest %= 2**256


def _first_good(path: Path, unit_count: int | None) -> tuple[dict, str]:
    reasons: Counter = Counter()
    for line in itertools.islice(read_lines(path), 10_000):
        try:
            return parse_line(line, unit_count)
        except BadRow as error:
            reasons[str(error)[:100]] += 1
    most = reasons.most_common(1)
    raise UserError(
        f"{path} has no well-formed row in its first lines; most often: {most[0][0] if most else 'it is empty'}"
    )


def _dialect(path: Path, templates: str) -> Dialect:
    """The way of writing that gives most of the file's first lines."""
    with open(path, "rb") as file:
        file.seek(-1, 2)
        ends = file.read(1) == b"\n"
    ways = [
        Dialect(*flags, ends_in_newline=ends)
        for flags in itertools.product((False, True), repeat=4)
    ]
    matches = dict.fromkeys(ways, 0)
    for line in itertools.islice(read_lines(path), 500):
        try:
            record, own_prefix = parse_line(line, templates=templates)
        except BadRow:
            continue
        tail = TEXT_TAIL[templates] if "task" in record else CHAIN_END
        text, found = sets.record_to_row(record, templates).text(tail), line.data.decode()
        for way in ways:
            matches[way] += way.line(own_prefix, text) == found
    return max(ways, key=matches.__getitem__)


def _kind(record: dict) -> sets.Kind:
    return "cross_modal" if "task" in record else "chain"


def _existing(path: Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"no file at {path}: give a .jsonl file with the keys prefix and plain_text"
        )
    return path


def _batched(items: list, size: int) -> Iterator[tuple]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
