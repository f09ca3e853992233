"""The data card of a set: what it is, where it comes from, who may use it and how much there is, in Markdown, from summary.json."""

from __future__ import annotations

from pathlib import Path

from speechgpt_lib.runs.artefacts import write_text

TITLES = {"cross_modal": "Cross-modal instructions", "chain": "Chain-of-modality instructions"}
ABOUT = {
    "cross_modal": "Each row asks, in one of many wordings, for a transcript of speech (asr) or for speech of a text (tts).",
    "chain": "Each row is a question and its answer, as text and as speech, in one of four formats that let the answer go through text.",
}
SOURCES = {  # what is known of sources that are no corpus of recorded speech
    "lab": {
        "title": "the lab corpus: sentences of a closed world, spoken by eSpeak NG",
        "licence": "sentences: MIT, as this repository; eSpeak NG is GPL-3.0, which doesn't extend to the speech it makes",
    },
    "moss": {
        "title": "moss-002-sft-data (text dialogues)",
        "licence": "CC BY-NC 4.0: no commercial use, and neither of what is made from it; give credit to MOSS (Fudan University)",
    },
    "descriptions": {"title": "task descriptions written for this repository", "licence": "MIT"},
}
UNKNOWN = "not known to this program: look it up before you pass the set on"


def source_facts(name: str, path: Path | str | None = None) -> dict:
    """Title and licence of a source: a corpus by its name, or one of `SOURCES`."""
    from speechgpt_lib.corpora.catalogue import CORPORA

    known = SOURCES.get(name) or (
        {"title": CORPORA[name].title, "licence": CORPORA[name].licence} if name in CORPORA else {}
    )
    facts = {
        "name": name,
        "title": known.get("title", name),
        "licence": known.get("licence", UNKNOWN),
    }
    return facts | ({"path": str(path)} if path else {})


def write_card(path: Path, summary: dict) -> None:
    """Write the card of a finished set."""
    write_text(path, render(summary))


def render(summary: dict) -> str:
    """The card as Markdown."""
    statistics, kind = summary["statistics"], summary["kind"]
    lines = [f"# {TITLES[kind]}", "", ABOUT[kind], ""]
    lines += ["| | |", "|---|---|"]
    facts = {
        "training rows": f"{statistics['rows']:,}",
        "held-out rows": f"{summary['held_out']:,}",
        "in quarantine": f"{sum(summary['quarantined'].values()):,}",
        "unit inventory": f"`{summary['inventory']}`, {summary['unit_count']} units at 50 Hz before merging",
        "units used": f"{statistics['units']['used']} of {summary['unit_count']}",
        "templates": summary["templates"],
        "table hash": f"`{summary['table_hash']}`",
    }
    if "voicing" in summary:
        facts |= {
            "questions voiced by": summary["voicing"]["questions"],
            "answers voiced by": summary["voicing"]["answers"],
        }
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## Sources and licences", "", "| source | licence |", "|---|---|"]
    lines += [
        f"| {source.get('title', source.get('path', '?'))} | {source.get('licence', UNKNOWN)} |"
        for source in summary["sources"]
    ]
    lines += [
        "",
        "## Share of each task" if kind == "cross_modal" else "## Share of each format",
        "",
        "| | rows | share |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {count:,} | {statistics['shares'][name]:.1%} |"
        for name, count in statistics["counts"].items()
    ]
    lines += [
        "",
        "## Held-out sentences",
        "",
        f"Rule: {summary['held_out_rule']}. No sentence stands on both sides.",
    ]
    if summary["quarantined"]:
        lines += ["", "## Quarantine", "", "| reason | rows |", "|---|---|"]
        lines += [f"| {reason} | {count:,} |" for reason, count in summary["quarantined"].items()]
        lines += ["", "Each with its place in `quarantine-*.parquet`."]
    if "selection" in summary:
        lines += ["", "## Selection", "", "| step | dropped | left |", "|---|---|---|"]
        lines += [
            f"| {step['step']} | {step['dropped']:,} | {step['left']:,} |"
            for step in summary["selection"]
        ]
    lines += [
        "",
        "## Lengths",
        "",
        "A unit is one token of the language model; a word is what stands between blanks.",
    ]
    for name, measure in statistics["lengths"].items():
        quantiles = ", ".join(f"{key} {value}" for key, value in measure["quantiles"].items())
        lines += ["", f"**{name.replace('_', ' ')}**: {measure['total']:,} in all; {quantiles}", ""]
        lines += _bars(measure["histogram"])
    return "\n".join(lines) + "\n"


def _bars(histogram: list[dict]) -> list[str]:
    most = max((entry["rows"] for entry in histogram), default=1)
    spans = [
        f"{e['from']}–{e['to']}" if e["from"] != e["to"] else str(e["from"]) for e in histogram
    ]
    return [
        f"    {span:>11} {e['rows']:>10,} {'█' * round(40 * e['rows'] / most)}"
        for span, e in zip(spans, histogram, strict=True)
    ]
