"""Counts of a set that add up over shards: rows a group, lengths, how often each unit occurs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from speechgpt_lib.instructions.records import Record, row_digest

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}


@dataclass
class Statistics:
    """Counts of rows; `lengths` maps a size such as "words" to {length: rows}.

    `digest` adds up the SHA-256 of the rows, mod 2^256; `reasons` are those of refused ones.
    """

    groups: Counter = field(default_factory=Counter)  # rows a task or format
    lengths: dict[str, Counter] = field(default_factory=dict)
    unit_usage: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    digest: int = 0
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
