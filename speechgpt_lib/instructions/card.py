"""The data card of a set in Markdown: what it is, its sources and licences, how much there is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from speechgpt_lib.corpora.catalogue import CORPORA

_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
UNKNOWN = "not known to this program: look it up before you pass the set on"


def source_facts(name: str) -> dict:
    """Title and licence of a source: a corpus by its name, or one of `card.yaml`."""
    corpus = CORPORA.get(name)
    known = (corpus.title, corpus.licence) if corpus else (name, UNKNOWN)
    title, licence = _WORDS["sources"].get(name, known)
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
