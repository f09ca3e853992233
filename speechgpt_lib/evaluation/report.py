"""The figures of a run → `report.json` for programs and `report.html` for people, in the run
directory."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

import psutil

from speechgpt_lib.errors import reading
from speechgpt_lib.metrics.unit_errors import bootstrap_mean
from speechgpt_lib.runs.artefacts import read_json, write_json, write_text
from speechgpt_lib.runs.run import Run, Step

COSTS = ("wall_seconds", "cpu_seconds")  # of the steps; cpu: user and system, of the process tree
GOALS = {  # key → (what it is, must, aim)
    "asr_wer": ("word error rate of transcripts, held-out sentences", 0.08, 0.03),
    "asr_wer_heldout_voice": ("the same in a voice never heard", 0.35, 0.10),
    "asr_wer_whisper": ("the same by Whisper's normaliser, as papers count", None, None),
    "tts_wer_open": ("word error rate of spoken sentences, open judge", None, None),
    "tts_wer_open_ceiling": ("the same of recordings of these sentences", None, None),
    "tts_wer": ("word error rate of spoken sentences, template judge", 0.20, None),
    "resynthesis_wer_open": ("speech → units → speech, open judge", None, None),
    "resynthesis_wer_open_ceiling": ("the same of recordings of these sentences", None, None),
    "resynthesis_wer": ("speech → units → speech, template judge", None, None),
    "judge_agreement": ("sentences in which both judges hear the same words", None, None),
    "qa_text_accuracy": ("spoken question → right text answer", 0.80, 0.95),
    "qa_speech_accuracy": ("spoken question → right spoken answer", 0.60, 0.90),
    "answer_gap": ("right in text less right in speech: what speaking loses", None, None),
    "wellformed_share": ("answers that have exactly the parts asked for", 0.98, 1.0),
    "wellformed_share_temperature_0.7": ("the same where tokens are drawn", 0.90, 0.98),
}


def write_report(run: Run) -> dict:
    """Put together `report.json` and `report.html` from the facts of all steps; cheap, so every run
    ends with it."""
    with reading(run.path, "make its steps again (--force)", "has facts that give no report"):
        report, page = _put_together(run)
    if os.access(run.path, os.W_OK):  # a run of others, to read only, has its report
        write_json(run.path / "report.json", report)
        write_text(run.path / "report.html", page)
    return report


def answer_gap(examples: Sequence[dict], draws: int) -> dict[str, dict]:
    """{"answer_gap"}: how many more answers are right in writing than in speech, as a share of the
    questions; {} where none was asked."""
    if not examples:
        return {}
    lost = [float(e["right_text"]) - float(e["right_speech"]) for e in examples]
    return {"answer_gap": asdict(bootstrap_mean(lost, draws=draws))}


def _put_together(run: Run) -> tuple[dict, str]:
    evaluation, steps = run.require("evaluation"), run.steps()
    found = {p.stem: read_json(p) for p in (run.path / "notebooks").glob("[0-9][0-9]_*.json")}
    # Of the notebook that is being executed, the time isn't known yet.
    notebooks = {name: found[name] for name in sorted(found) if "wall_seconds" in found[name]}
    peaks = [one["peak_memory_mb"] for one in (*(s.facts for s in steps), *notebooks.values())]
    examples = read_json(evaluation.path / "examples.json")["examples"]
    gap = answer_gap(examples, run.recipe.evaluation.bootstrap_draws)
    report = dict(evaluation.metrics["figures"]) | gap
    for name in COSTS:
        value = round(sum(step.facts.get(name, 0.0) for step in steps), 1)
        report[name] = _exact(value, len(steps))
    report["peak_memory_mb"] = _exact(max(peaks), len(peaks))
    # cut: answers that met their longest length; open_judge: which one listened, or why none did
    for name in ("cut", "qa_by_kind", "qa_baseline", "open_judge"):
        report[name] = evaluation.metrics[name]
    kept = (*COSTS, "peak_memory_mb", "finished")
    report["steps"] = {
        s.name: {name: s.facts.get(name) for name in kept} | {"metrics": s.metrics} for s in steps
    }
    report["steps"][evaluation.name]["metrics"] = {}  # they stand above
    report["notebooks"] = {n: {"wall_seconds": s["wall_seconds"]} for n, s in notebooks.items()}
    report["recipe"] = {"name": run.recipe.name, "seed": run.recipe.seed}
    report["machine"] = evaluation.facts["machine"] | {
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "date": evaluation.facts["finished"],
    }
    return report, _page(run, report, evaluation, examples)


def figures_of(report: dict) -> dict[str, dict]:
    """The entries of a report that are figures: {value, n, low, high}."""
    parts = {"value", "n", "low", "high"}
    return {k: v for k, v in report.items() if isinstance(v, dict) and parts <= v.keys()}


def _exact(value: float, n: int) -> dict:
    """A figure that was counted, not sampled."""
    return {"value": value, "n": n, "low": value, "high": value}


def _page(run: Run, report: dict, evaluation: Step, examples: list[dict]) -> str:
    """One page without scripts or outside files: figures, kinds of questions, answers to listen to,
    what each step cost."""
    title = f"SpeechGPT, recipe {run.recipe.name}, seed {run.recipe.seed}"
    machine, baseline = report["machine"], report["qa_baseline"]
    where = f"{machine['system']}, {machine['cpu']['name']}, {machine['cores']} cores"
    about = "The corpora have no questions with answers."
    if baseline is not None:
        share = f"{baseline['value']:.2f}"
        about = f"A nearest-training-question baseline answers {share} of the questions."
    cut = [f"{count} of {name}" for name, count in report["cut"].items() if count]
    about += f" Open judge: {report['open_judge'].rstrip('.')}."
    about += f" Answers cut at their longest length: {', '.join(cut) or 'none'}."

    figures, rows, heard = figures_of(report), [], []
    for key in sorted(figures, key=lambda key: key not in GOALS):  # first those with a goal
        what, *goals = GOALS.get(key, ("", None, None))
        shown = ("" if goal is None else f"{goal:g}" for goal in goals)
        rows.append((key, what, _interval(figures[key]), *shown))
    by_kind = report["qa_by_kind"].items()
    kinds = [(kind, _interval(v["text"]), _interval(v["speech"])) for kind, v in by_kind]
    for number, e in enumerate(examples):
        asked = evaluation.path / f"example_{number:02d}_question.wav"
        answer = evaluation.path / f"example_{number:02d}_answer.wav"
        if asked.exists():
            mark = "right" if e["right_speech"] else "wrong"
            heard.append((e["question"], asked, e["answered"], answer, e["judged"], mark))
    costs = [
        (name, f"{s['wall_seconds']:.0f} s", f"{s['peak_memory_mb']:.0f} MB")
        for name, s in report["steps"].items()
    ]
    caption = "Figures on held-out sentences (95 % bootstrap interval)"
    heads = "question, as spoken, answer in text, answer in speech, what the judge heard, "
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{escape(where)}, {machine['date']}. {about}</p>"
        f"{_table(caption, 'key, what, value, must, aim', rows)}"
        f"{_table('Right answers by kind of question', 'kind, in text, in speech', kinds)}"
        f"{_table('Listen', heads, heard)}"
        f"{_table('What each step cost', 'step, wall, peak memory', costs)}</html>\n"
    )


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}audio{width:14rem;height:2rem}"
    "th,td{text-align:left;padding:.3rem .8rem;border-bottom:1px solid #ddd}"
    "caption{text-align:left;font-weight:600;padding:.5rem 0}"
)


def _table(caption: str, heads: str, rows: list[tuple]) -> str:
    lines = ["".join(f"<th>{head}</th>" for head in heads.split(", "))]
    lines += ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{caption}</caption>{body}</table>"


def _cell(content: str | Path) -> str:
    """Text as it stands; a sound file as a player that holds it."""
    if not isinstance(content, Path):
        return escape(content)
    data = base64.b64encode(content.read_bytes()).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


def _interval(figure: dict) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f}, n = {figure['n']})"
