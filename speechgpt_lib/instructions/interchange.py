"""Sets ↔ the released JSONL (`prefix`, `plain_text`), byte for byte, and a checker of such files.

All of it streams.  JSON can be written in several ways (blanks after separators, letters escaped);
the first lines of a file tell which, and a line that we would write otherwise is kept as found.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.card import Statistics
from speechgpt_lib.instructions.parsing import BadRow, marker_in, parse_row
from speechgpt_lib.instructions.records import RECORDS, VERBATIM, ChainRecord, Record, to_table
from speechgpt_lib.instructions.templates import META_PREFIX, TEMPLATES
from speechgpt_lib.runs.artefacts import atomic_path, hash_file, hash_json, open_text

LONGEST_LINE = 1 << 24  # bytes


@dataclass(frozen=True)
class Dialect:
    """How a JSONL file writes its rows."""

    ascii_only: bool = False
    compact: bool = False
    text_first: bool = False
    carriage_return: bool = False
    ends_in_newline: bool = True

    def line(self, prefix: str, text: str) -> str:
        """A row as a line, without the newline."""
        row = {"prefix": prefix, "plain_text": text}
        row = dict(reversed(row.items())) if self.text_first else row
        separators = (",", ":") if self.compact else None
        line = json.dumps(row, ensure_ascii=self.ascii_only, separators=separators)
        return line + "\r" * self.carriage_return


class Line(NamedTuple):
    """A line of a file: number from 1, bytes without the newline (None where it is too long)."""

    number: int
    data: bytes | None


@dataclass
class Checked:
    """What a check has found: counts of lines, of reasons, and of the good rows."""

    lines: int = 0
    good: int = 0
    bad: int = 0
    reasons: Counter = field(default_factory=Counter)
    templates: Counter = field(default_factory=Counter)
    prefixes: Counter = field(default_factory=Counter)
    statistics: Statistics = field(default_factory=Statistics)


def read_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """The lines of a file of any size; of one longer than `longest` bytes, only the number."""
    if not path.is_file():
        raise UserError(f"no file at {path}: expected a .jsonl file with prefix and plain_text")
    with open_text(path) as file:
        file.seek(0)
        for number, data in enumerate(iter(partial(file.readline, longest + 1), b""), 1):
            too_long = len(data) > longest and not data.endswith(b"\n")
            while too_long and data and not data.endswith(b"\n"):
                data = file.readline(1 << 20)
            yield Line(number, None if too_long else data.removesuffix(b"\n"))


def parse_line(
    line: Line, unit_count: int | None = None, templates: str | None = None
) -> tuple[Record, str, str]:
    """A line → (record, its templates, its prefix).  Raises BadRow."""
    if line.data is None:
        raise BadRow("line too long", f"more than {LONGEST_LINE >> 20} MB: is a newline missing?")
    try:
        if not (text := line.data.decode("utf-8-sig")).strip():
            raise BadRow("empty line", "expected one JSON object a line")
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise BadRow("broken UTF-8", f"{error.reason} at byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:  # also absurd depths and numbers
        raise BadRow("not JSON", str(error).split("\n")[0][:120]) from None
    if not isinstance(row, dict):
        raise BadRow("not an object", f"found {type(row).__name__}, expected prefix and plain_text")
    for key in ("prefix", "plain_text"):
        if key not in row:
            found = ", ".join(map(repr, list(row)[:5])) or "no keys"
            raise BadRow("missing key", f"no {key}; it has {found}")
        if not isinstance(row[key], str):
            raise BadRow("not text", f"{key} is {type(row[key]).__name__}, expected text")
    prefix, text = row["prefix"], row["plain_text"]
    if strange := marker_in(prefix):
        raise BadRow("marker in prefix", f"the prefix has {strange} in it")
    if half := re.search("[\ud800-\udfff]", prefix + text):
        raise BadRow("broken UTF-8", f"half of a surrogate pair ({half[0]!a})")
    return *parse_row(text, unit_count, templates), prefix


def check_jsonl(
    path: Path, unit_count: int | None = None, on_bad: Callable[[Line, BadRow], None] | None = None
) -> Checked:
    """Look at every line of a JSONL file, ours or the released; `on_bad` is told of bad lines."""
    found = Checked()
    for line in read_lines(path):
        found.lines += 1
        try:
            record, templates, prefix = parse_line(line, unit_count)
        except BadRow as error:
            found.bad += 1
            found.reasons[error.reason] += 1
            if on_bad is not None:
                on_bad(line, error)
            continue
        found.good += 1
        found.templates[templates] += 1
        found.prefixes[prefix if prefix in ("", META_PREFIX) else "another"] += 1
        found.statistics.add(record)
    if found.lines == 0:
        raise UserError(f"{path} is empty: expected one JSON object a line")
    return found


def summarise_jsonl(path: Path, unit_count: int | None = None) -> dict:
    """What the data card of a JSONL file needs; its bad lines count as quarantined."""
    found, not_said = check_jsonl(path, unit_count), "not said in the file"
    counts, quarantined = found.statistics, dict(sorted(found.reasons.items()))
    kind = "cross_modal" if set(counts.groups) <= {"asr", "tts"} else "chain"
    unit_count = unit_count or max(counts.unit_usage, default=-1) + 1
    summary = {"kind": kind, "inventory": not_said, "unit_count": unit_count}
    summary |= {"templates": ", ".join(sorted(found.templates)), "table_hash": "import it to know"}
    summary |= {"held_out": 0, "held_out_rule": not_said, "quarantined": quarantined}
    return summary | {"sources": [{"title": str(path)}], "statistics": counts.summary()}


def export_jsonl(folder: Path, out: Path, templates: str | None = None, part: str = "rows") -> dict:
    """Write a set, or its `part` "held_out", as JSONL; a UserError for formats without a template.

    `templates` are "paper" or "release"; None takes the set's own.  The prefix of an imported set
    comes back; otherwise rows of the release have its meta prefix, and the paper's none.
    """
    summary = sets.read_summary(folder)
    templates = templates or summary["templates"]
    if templates not in TEMPLATES:
        raise UserError(f"unknown templates {templates!r}: choose {', '.join(TEMPLATES)}")
    formats = [name for name in summary["statistics"]["counts"] if name not in TEMPLATES[templates]]
    if summary["kind"] == "chain" and formats:
        cure = "export with --templates paper, or build the set with --templates release"
        raise UserError(f"the release has no text for {', '.join(formats)} of {folder}: {cure}")
    with reading(folder, "import it again", "has a damaged summary.json"):
        dialect = Dialect(**summary.get("dialect", {}))
    prefix = summary.get("prefix", META_PREFIX if templates == "release" else "")
    rows = 0
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for rows, record in enumerate(sets.read_set(folder, part=part), 1):
            line = record.verbatim if templates == summary["templates"] else None
            line = dialect.line(prefix, _text(record, templates)) if line is None else line
            file.write("\n" * (rows > 1) + line)
        file.write("\n" * (rows > 0 and dialect.ends_in_newline))
    return {"file": str(out), "rows": rows, "templates": templates, "sha256": hash_file(out)}


def import_jsonl(
    path: Path, out: Path, inventory_id: str, unit_count: int, shard_rows: int = 50_000
) -> dict:
    """Read a JSONL file into a set, its bad lines into quarantine; ids are line numbers."""
    kind, templates, prefix, dialect = _look(path, unit_count)
    settings = {"file": hash_file(path), "shard_rows": shard_rows, "dialect": vars(dialect)}
    facts = sets.SetFacts(kind, inventory_id, unit_count, templates, hash_json(settings))
    key = hash_json(facts.metadata())
    for number, group in enumerate(sets.in_shards(read_lines(path), shard_rows)):
        if not sets.is_made(out, number, key):
            with sets.ShardWriter(out, number, facts, key, VERBATIM) as writer:
                for lines in sets.in_shards(group, 1000):
                    _import(writer, lines, path, prefix, dialect)
    sources = [{"name": path.name, "title": f"imported from {path.name}", "path": str(path)}]
    more = {"dialect": vars(dialect), "prefix": prefix}
    return sets.finish(out, number + 1, facts, sources, "as in the file", **more)


def _import(
    writer: sets.ShardWriter, lines: list[Line], path: Path, prefix: str, dialect: Dialect
) -> None:
    rows, facts = [], writer.facts
    for line in lines:
        try:
            record, templates, own_prefix = parse_line(line, facts.unit_count, facts.templates)
            if not isinstance(record, RECORDS[facts.kind]):
                raise BadRow("another kind", f"the file begins with rows of a {facts.kind} set")
        except BadRow as bad:
            writer.refuse(str(path), f"line {line.number}", "", bad)
            continue
        found = line.data.decode()
        same = own_prefix == prefix and dialect.line(prefix, _text(record, templates)) == found
        verbatim = None if same else found
        rows.append(replace(record, id=f"{line.number:09d}", verbatim=verbatim))
    writer.add(to_table(rows, writer.schema))


def _look(path: Path, unit_count: int) -> tuple[str, str, str, Dialect]:
    """Kind, templates and prefix of the first good row; the dialect of most of the first lines."""
    ways = [Dialect(*flags) for flags in itertools.product((False, True), repeat=4)]
    first, matches, reasons = None, Counter(), Counter()
    for line in itertools.islice(read_lines(path), 10_000):
        if first and line.number > 500:
            break
        try:
            record, templates, prefix = parse_line(line, unit_count, first and first[1])
        except BadRow as error:
            reasons[str(error)[:100]] += 1
            continue
        kind = "chain" if isinstance(record, ChainRecord) else "cross_modal"
        first = first or (kind, templates, prefix)
        text, found = _text(record, templates), line.data.decode()
        matches.update(way for way in ways if way.line(prefix, text) == found)
    if first is None:
        most = reasons.most_common(1)[0][0] if reasons else "it is empty"
        raise UserError(f"{path} has no well-formed row in its first lines; most often: {most}")
    with open(path, "rb") as file:
        file.seek(-1, 2)
        end = file.read(1) == b"\n"
    return *first, replace(max(ways, key=matches.__getitem__), ends_in_newline=end)


def _text(record: Record, templates: str) -> str:
    name = record.format if isinstance(record, ChainRecord) else "cross_modal"
    return sets.record_to_row(record, templates).text(TEMPLATES[templates][name][2])
