"""Counts of a set that add up over shards: rows a group, lengths, how often each unit occurs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from speechgpt_lib.instructions.records import Record

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}


@dataclass
class Statistics:
    """Counts of rows and units; `lengths` maps a measure such as "words" to {length: rows}."""

    groups: Counter = field(default_factory=Counter)  # rows a task or format
    lengths: dict[str, Counter] = field(default_factory=dict)
    unit_usage: Counter = field(default_factory=Counter)
    _pending: list[np.ndarray] = field(default_factory=list, repr=False)

    def add(self, record: Record) -> None:
        """Count a row; a measure that it lacks (no units shown) is left out."""
        self.groups[record.group] += 1
        words = [len(text.split()) for name, text in record.texts.items() if name != "description"]
        for measure, length in zip(record.measures, [*map(len, record.shown), *words], strict=True):
            if length:
                self.lengths.setdefault(measure, Counter())[length] += 1
        self._pending.append(np.concatenate(record.shown))
        if len(self._pending) == 1000:  # counting the units of many rows at once is much faster
            self.settle()

    def settle(self) -> Statistics:
        """Count the units that `add` has put aside."""
        if self._pending:
            found, counts = np.unique(np.concatenate(self._pending), return_counts=True)
            self.unit_usage.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            self._pending.clear()
        return self

    def merge(self, other: Statistics) -> None:
        """Add the counts of other rows."""
        self.groups.update(other.groups)
        self.unit_usage.update(other.settle().unit_usage)
        for measure, counts in other.lengths.items():
            self.lengths.setdefault(measure, Counter()).update(counts)

    def to_json(self) -> dict:
        """All counts, sorted, so that equal rows give equal bytes."""
        self.settle()
        groups, usage = (dict(sorted(c.items())) for c in (self.groups, self.unit_usage))
        lengths = {name: dict(sorted(self.lengths[name].items())) for name in sorted(self.lengths)}
        return {"groups": groups, "lengths": lengths, "unit_usage": usage}

    @classmethod
    def from_json(cls, values: dict) -> Statistics:
        """The inverse of `to_json`; JSON has made texts of the numbers."""

        def counter(found: dict) -> Counter:
            return Counter({int(number): count for number, count in found.items()})

        lengths = {measure: counter(found) for measure, found in values["lengths"].items()}
        return cls(Counter(values["groups"]), lengths, counter(values["unit_usage"]))

    def summary(self) -> dict:
        """What people want to know: totals, shares, quantiles and histograms."""
        self.settle()
        rows, groups = self.groups.total(), sorted(self.groups.items())
        most = [[unit, count] for unit, count in self.unit_usage.most_common(5)]
        return {
            "rows": rows,
            "counts": dict(groups),
            "shares": {name: round(count / rows, 4) for name, count in groups},
            "lengths": {name: _spread(self.lengths[name]) for name in sorted(self.lengths)},
            "units": {"used": len(self.unit_usage), "most_frequent": most},
        }


def _spread(lengths: Counter) -> dict:
    """Total, quantiles and histogram of {length: rows}; the bins' edges double: 0, 1, 2, 3–4 …"""
    items = sorted(lengths.items())
    cumulated = np.cumsum([rows for _, rows in items])
    quantiles, bins = dict.fromkeys(QUANTILES, 0), Counter()
    for name, share in QUANTILES.items() if items else ():
        place = min(int(np.searchsorted(cumulated, share * cumulated[-1])), len(items) - 1)
        quantiles[name] = items[place][0]
    for length, rows in items:
        last = 1 << (length - 1).bit_length() if length else 0
        bins[last // 2 + 1 if last > 1 else last, last] += rows
    histogram = [{"from": a, "to": b, "rows": rows} for (a, b), rows in sorted(bins.items())]
    total = sum(length * rows for length, rows in items)
    return {"total": total, "quantiles": quantiles, "histogram": histogram}
