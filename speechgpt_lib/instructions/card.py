"""The data card of a set in Markdown: what it is, its sources and licences, how much there is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from speechgpt_lib.corpora.catalogue import CORPORA

ABOUT = {
    "cross_modal": (
        "# Cross-modal instructions",
        "Each row asks, in one of many wordings, "
        "for a transcript of speech (asr) or for speech of a text (tts).",
    ),
    "chain": (
        "# Chain-of-modality instructions",
        "Each row is a question and its answer, as text and as speech, "
        "in one of four formats that let the answer go through text.",
    ),
}
SOURCES = {  # title and licence of sources that are no corpus of recorded speech
    "lab": (
        "the lab corpus: sentences of a closed world, spoken by eSpeak NG",
        "sentences: MIT, as this repository; "
        "eSpeak NG is GPL-3.0, which doesn't extend to the speech it makes",
    ),
    "moss": (
        "moss-002-sft-data (text dialogues)",
        "CC BY-NC 4.0: no commercial use, and neither of what is made from it; "
        "give credit to MOSS (Fudan University)",
    ),
    "descriptions": ("task descriptions written for this repository", "MIT"),
}
UNKNOWN = "not known to this program: look it up before you pass the set on"


def source_facts(name: str, path: Path | str | None = None) -> dict:
    """Title and licence of a source: a corpus by its name, or one of `SOURCES`."""
    corpus = CORPORA.get(name)
    known = (corpus.title, corpus.licence) if corpus else (name, UNKNOWN)
    title, licence = SOURCES.get(name, known)
    facts = {"name": name, "title": title, "licence": licence}
    return facts | ({"path": str(path)} if path else {})


def render(summary: dict) -> str:
    """The card of a set's summary."""
    statistics, kind = summary["statistics"], summary["kind"]
    count = summary["unit_count"]
    facts = {
        "training rows": f"{statistics['rows']:,}",
        "held-out rows": f"{summary['held_out']:,}",
        "in quarantine": f"{sum(summary['quarantined'].values()):,}",
        "unit inventory": f"`{summary['inventory']}`, {count} units at 50 Hz before merging",
        "units used": f"{statistics['units']['used']} of {count}",
        "templates": summary["templates"],
        "table hash": f"`{summary['table_hash']}`",
    }
    for way, name in summary.get("voicing", {}).items():
        facts[f"{way} voiced by"] = name
    title, about = ABOUT[kind]
    lines = [title, "", about, "", *_table(("", ""), facts.items()), ""]
    titles = [source.get("title", source.get("path", "?")) for source in summary["sources"]]
    licences = [source.get("licence", UNKNOWN) for source in summary["sources"]]
    sources = zip(titles, licences, strict=True)
    lines += ["## Sources and licences", "", *_table(("source", "licence"), sources), ""]
    lines += [f"## Share of each {'task' if kind == 'cross_modal' else 'format'}", ""]
    counts, shares = statistics["counts"], statistics["shares"]
    rows = [(name, f"{counts[name]:,}", f"{shares[name]:.1%}") for name in counts]
    lines += [*_table(("", "rows", "share"), rows), "", "## Held-out sentences", ""]
    lines += [f"Rule: {summary['held_out_rule']}. No sentence stands on both sides."]
    if summary["quarantined"]:
        reasons = [(reason, f"{rows:,}") for reason, rows in summary["quarantined"].items()]
        lines += ["", "## Quarantine", "", *_table(("reason", "rows"), reasons)]
        lines += ["", "Each with its place in `quarantine-*.parquet`."]
    if "selection" in summary:
        head = ("step", "dropped", "left")
        steps = [(s["step"], f"{s['dropped']:,}", f"{s['left']:,}") for s in summary["selection"]]
        lines += ["", "## Selection", "", *_table(head, steps)]
    lines += ["", "## Lengths", "", "A unit is one token of the language model; "]
    lines[-1] += "a word is what stands between blanks."
    for name, measure in statistics["lengths"].items():
        quantiles = ", ".join(f"{key} {value}" for key, value in measure["quantiles"].items())
        lines += ["", f"**{name.replace('_', ' ')}**: {measure['total']:,} in all; {quantiles}", ""]
        lines += _bars(measure["histogram"])
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    first = "|" + "".join(f" {name} |" if name else " |" for name in head)
    return [first, "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _bars(histogram: list[dict]) -> list[str]:
    most, lines = max((entry["rows"] for entry in histogram), default=1), []
    for entry in histogram:
        first, last, rows = entry["from"], entry["to"], entry["rows"]
        span = f"{first}–{last}" if first != last else f"{first}"
        lines.append(f"    {span:>11} {rows:>10,} {'█' * round(40 * rows / most)}")
    return lines
