"""Counts of a set, and its data card in Markdown: what it is, sources and licences, how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from speechgpt_lib.corpora.catalogue import CORPORA
from speechgpt_lib.instructions.records import Record, row_digest

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}
_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
UNKNOWN = "not known to this program: look it up before you pass the set on"


@dataclass
class Statistics:
    """Counts of rows, which add up over shards; `reasons` are those of refused ones."""

    groups: Counter = field(default_factory=Counter)  # rows a task or format
    lengths: dict[str, Counter] = field(default_factory=dict)  # "words" and such → {length: rows}
    unit_usage: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    digest: int = 0  # the SHA-256 of all rows, added up mod 2^256
    held_out: int = 0

    def add(self, record: Record) -> None:
        """Count a row; a size that it lacks (no units shown) is left out."""
        group, texts, shown = record.content
        self.groups[group] += 1
        self.digest = (self.digest + row_digest(record)) % 2**256
        words = [len(text.split()) for name, text in texts.items() if name != "description"]
        for size, length in zip(record.sizes, [*map(len, shown), *words], strict=True):
            if length:
                self.lengths.setdefault(size, Counter())[length] += 1
        for units in shown:
            self.unit_usage.update(units.tolist())

    def to_json(self) -> dict:
        """All counts, sorted, so that equal rows give equal bytes."""
        groups, usage = (dict(sorted(c.items())) for c in (self.groups, self.unit_usage))
        lengths = {name: dict(sorted(self.lengths[name].items())) for name in sorted(self.lengths)}
        of_rows = {"groups": groups, "lengths": lengths, "unit_usage": usage}
        more = {"held_out": self.held_out, "reasons": self.reasons}
        return {"statistics": of_rows, "digest": f"{self.digest:064x}", **more}

    def merge(self, found: dict) -> None:
        """Add what `to_json` gave for other rows; JSON has made texts of the numbers."""
        of_rows = found["statistics"]
        self.groups.update(of_rows["groups"])
        self.reasons.update(found["reasons"])
        numbers = [(self.unit_usage, of_rows["unit_usage"])]
        for size, counts in of_rows["lengths"].items():
            numbers.append((self.lengths.setdefault(size, Counter()), counts))
        for counter, counts in numbers:
            counter.update({int(number): count for number, count in counts.items()})
        self.digest = (self.digest + int(found["digest"], 16)) % 2**256
        self.held_out += found["held_out"]

    def summary(self) -> dict:
        """What people want to know: totals, shares, quantiles and histograms."""
        rows, groups = self.groups.total(), sorted(self.groups.items())
        most = sorted(self.unit_usage.items(), key=lambda found: (-found[1], found[0]))[:5]
        units = {"used": len(self.unit_usage), "most_frequent": list(map(list, most))}
        shares = {name: round(count / rows, 4) for name, count in groups}
        lengths = {name: _spread(self.lengths[name]) for name in sorted(self.lengths)}
        counts = {"rows": rows, "counts": dict(groups), "shares": shares}
        return counts | {"lengths": lengths, "units": units}


def source_facts(name: str) -> dict:
    """Title and licence of a source: a corpus by its name, or one of `card.yaml`."""
    corpora = {name: (corpus.title, corpus.licence) for name, corpus in CORPORA.items()}
    title, licence = (corpora | _WORDS["sources"]).get(name, (name, UNKNOWN))
    return {"name": name, "title": title, "licence": licence}


def render(summary: dict) -> str:
    """The card of a set's summary."""
    statistics, kind, count = summary["statistics"], summary["kind"], summary["unit_count"]
    facts = {
        "training rows": f"{statistics['rows']:,}",
        "held-out rows": f"{summary['held_out']:,}",
        "in quarantine": f"{sum(summary['quarantined'].values()):,}",
        "unit inventory": f"`{summary['inventory']}`, {count} units at 50 Hz before merging",
        "units used": f"{statistics['units']['used']} of {count}",
        "templates": summary["templates"],
        "table hash": f"`{summary['table_hash']}`",
    }
    facts |= {f"{way} voiced by": name for way, name in summary.get("voicing", {}).items()}
    title, about = _WORDS["about"][kind]
    lines = [title, "", about, *_table(("", ""), facts.items())]
    sources = [(source["title"], source.get("licence", UNKNOWN)) for source in summary["sources"]]
    lines += ["", "## Sources and licences", *_table(("source", "licence"), sources)]
    counts, shares = statistics["counts"], statistics["shares"]
    rows = [(name, f"{counts[name]:,}", f"{shares[name]:.1%}") for name in counts]
    lines += ["", f"## Share of each {'task' if kind == 'cross_modal' else 'format'}"]
    lines += [*_table(("", "rows", "share"), rows), "", "## Held-out sentences", ""]
    lines += [f"Rule: {summary['held_out_rule']}. No sentence stands on both sides."]
    if summary["quarantined"]:
        reasons = [(reason, f"{rows:,}") for reason, rows in summary["quarantined"].items()]
        lines += ["", "## Quarantine", *_table(("reason", "rows"), reasons)]
        lines += ["", "Each with its place in `quarantine-*.parquet`."]
    if "selection" in summary:
        steps = [(s["step"], f"{s['dropped']:,}", f"{s['left']:,}") for s in summary["selection"]]
        lines += ["", "## Selection", *_table(("step", "dropped", "left"), steps)]
    what = "A unit is one token of the language model; a word is what stands between blanks."
    lines += ["", "## Lengths", "", what]
    for name, measure in statistics["lengths"].items():
        quantiles = ", ".join(f"{key} {value}" for key, value in measure["quantiles"].items())
        lines += ["", f"**{name.replace('_', ' ')}**: {measure['total']:,} in all; {quantiles}", ""]
        most = max((entry["rows"] for entry in measure["histogram"]), default=1)
        for first, last, rows in map(dict.values, measure["histogram"]):
            span = f"{first}–{last}" if first != last else f"{first}"
            lines.append(f"    {span:>11} {rows:>10,} {'█' * round(40 * rows / most)}")
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    first = "|" + "".join(f" {name} |" if name else " |" for name in head)
    return ["", first, "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _spread(lengths: Counter) -> dict:
    """Total, quantiles and histogram of {length: rows}; the bins' edges double: 0, 1, 2, 3–4 …"""
    items = sorted(lengths.items())
    cumulated = np.cumsum([rows for _, rows in items])
    quantiles, bins = dict.fromkeys(QUANTILES, 0), Counter()
    for name, share in QUANTILES.items() if items else ():
        quantiles[name] = items[np.searchsorted(cumulated, share * cumulated[-1])][0]
    for length, rows in items:
        last = 1 << (length - 1).bit_length() if length else 0
        bins[last // 2 + 1 if last > 1 else last, last] += rows
    histogram = [{"from": a, "to": b, "rows": rows} for (a, b), rows in sorted(bins.items())]
    total = sum(length * rows for length, rows in items)
    return {"total": total, "quantiles": quantiles, "histogram": histogram}
