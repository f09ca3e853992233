"""Counts of a set that can be added up over shards: rows a task or format, lengths, and how often each unit occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Statistics:
    """`lengths` maps a measure ("units", "words") to {length: rows}; `unit_usage` a unit to how often it occurs."""

    groups: Counter = field(default_factory=Counter)
    lengths: dict[str, Counter] = field(default_factory=dict)
    unit_usage: Counter = field(default_factory=Counter)
    _pending: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def rows(self) -> int:
        return sum(self.groups.values())

    def add(self, groups: Sequence[str], **lengths: Sequence[int]) -> None:
        """Rows of `groups` with a length each for every measure."""
        self.groups.update(groups)
        for measure, values in lengths.items():
            self.lengths.setdefault(measure, Counter()).update(values)

    def add_units(self, units: np.ndarray) -> None:
        """Unit ids (n,) of any number of rows."""
        self._pending.append(units)
        if len(self._pending) == 1000:  # counting many rows at once is much faster
            self.settle()

    def settle(self) -> Statistics:
        """Count what `add_units` has put aside."""
        if self._pending:
            found, counts = np.unique(np.concatenate(self._pending), return_counts=True)
            self.unit_usage.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            self._pending.clear()
        return self

    def merge(self, other: Statistics) -> None:
        self.groups.update(other.groups)
        self.unit_usage.update(other.settle().unit_usage)
        for measure, counts in other.lengths.items():
            self.lengths.setdefault(measure, Counter()).update(counts)

    def total(self, measure: str) -> int:
        return sum(length * rows for length, rows in self.lengths.get(measure, Counter()).items())

    def quantiles(
        self, measure: str, shares: Sequence[float] = (0.0, 0.05, 0.5, 0.95, 1.0)
    ) -> list[int]:
        """The lengths below which the given shares of the rows lie; zeros where there are none."""
        items = sorted(self.lengths.get(measure, Counter()).items())
        if not items:
            return [0] * len(shares)
        cumulated = np.cumsum([rows for _, rows in items])
        places = [
            min(int(np.searchsorted(cumulated, share * cumulated[-1])), len(items) - 1)
            for share in shares
        ]
        return [items[place][0] for place in places]

    def histogram(self, measure: str) -> list[tuple[int, int, int]]:
        """(from, to, rows) with edges that double: 0, 1–2, 3–4, 5–8, 9–16 …"""
        bins: Counter = Counter()
        for length, rows in self.lengths.get(measure, Counter()).items():
            bins[max(0, int(length) - 1).bit_length() + (length > 0)] += rows
        edges = {
            k: (0, 0) if k == 0 else (1, 1) if k == 1 else (2 ** (k - 2) + 1, 2 ** (k - 1))
            for k in bins
        }
        return [(*edges[k], bins[k]) for k in sorted(bins)]

    def to_json(self) -> dict:
        self.settle()
        lengths = {
            measure: dict(sorted(counts.items()))
            for measure, counts in sorted(self.lengths.items())
        }
        return {
            "groups": dict(sorted(self.groups.items())),
            "lengths": lengths,
            "unit_usage": dict(sorted(self.unit_usage.items())),
        }

    @classmethod
    def from_json(cls, values: dict) -> Statistics:
        lengths = {
            m: Counter({int(k): v for k, v in counts.items()})
            for m, counts in values["lengths"].items()
        }
        return cls(
            Counter(values["groups"]),
            lengths,
            Counter({int(k): v for k, v in values["unit_usage"].items()}),
        )

    def summary(self) -> dict:
        """What people want to know: totals, quantiles and histograms."""
        self.settle()
        measures = {
            name: {
                "total": self.total(name),
                "quantiles": dict(
                    zip(
                        ("least", "5 %", "median", "95 %", "most"),
                        self.quantiles(name),
                        strict=True,
                    )
                ),
                "histogram": [{"from": a, "to": b, "rows": n} for a, b, n in self.histogram(name)],
            }
            for name in sorted(self.lengths)
        }
        shares = {name: round(count / self.rows, 4) for name, count in sorted(self.groups.items())}
        usage = {
            "used": len(self.unit_usage),
            "most_frequent": [[u, n] for u, n in self.unit_usage.most_common(5)],
        }
        return {
            "rows": self.rows,
            "counts": dict(sorted(self.groups.items())),
            "shares": shares,
            "lengths": measures,
            "units": usage,
        }
