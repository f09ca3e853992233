"""The figures of a run → `report.json` for programs and `report.html` for people, in the run
directory."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import psutil

from speechgpt_lib.runs.artefacts import read_json, write_json, write_text
from speechgpt_lib.runs.run import Run, Step

COSTS = ("wall_seconds", "cpu_seconds")  # of the steps; cpu: user and system, of the process tree
GOALS = {  # key → (what it is, must, aim, better is higher)
    "asr_wer": ("word error rate of transcripts, held-out sentences", 0.08, 0.03, False),
    "asr_wer_heldout_voice": ("the same in a voice never heard", 0.35, 0.10, False),
    "tts_wer": ("word error rate of spoken sentences, template judge", 0.20, None, False),
    "resynthesis_wer": ("speech → units → speech, template judge", None, None, False),
    "qa_text_accuracy": ("spoken question → right text answer", 0.80, 0.95, True),
    "qa_speech_accuracy": ("spoken question → right spoken answer", 0.60, 0.90, True),
    "wellformed_share": ("answers that have exactly the parts asked for", 0.98, 1.0, True),
}


def write_report(run: Run) -> dict:
    """Put together `report.json` and `report.html` from the facts of all steps; cheap, so every run
    ends with it."""
    evaluation, steps = run.require("evaluation"), run.steps()
    found = sorted((run.path / "notebooks").glob("[0-9][0-9]_*.json"))
    notebooks = {path.stem: read_json(path) for path in found}
    notebooks = {
        name: n for name, n in notebooks.items() if "wall_seconds" in n
    }  # not the running one
    peaks = [step.facts["peak_memory_mb"] for step in steps]
    peaks += [n["peak_memory_mb"] for n in notebooks.values()]
    costs = {name: [step.facts.get(name, 0.0) for step in steps] for name in COSTS}
    report = dict(evaluation.metrics["figures"])
    report |= {name: _exact(round(sum(values), 1), len(steps)) for name, values in costs.items()}
    report["peak_memory_mb"] = _exact(max(peaks), len(peaks))
    for name in ("cut", "qa_by_kind", "qa_baseline"):  # cut: answers that met their longest length
        report[name] = evaluation.metrics[name]
    kept = (*COSTS, "peak_memory_mb", "finished")
    report["steps"] = {
        step.name: {name: step.facts.get(name) for name in kept}
        | {"metrics": step.metrics if step.name != evaluation.name else {}}
        for step in steps
    }
    report["notebooks"] = {n: {"wall_seconds": s["wall_seconds"]} for n, s in notebooks.items()}
    report["recipe"] = {"name": run.recipe.name, "seed": run.recipe.seed}
    report["machine"] = evaluation.facts["machine"] | {
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "date": evaluation.facts["finished"],
    }
    write_json(run.path / "report.json", report)
    write_text(run.path / "report.html", render_html(run, report, evaluation))
    return report


def _exact(value: float, n: int) -> dict:
    """A figure that was counted, not sampled."""
    return {"value": value, "n": n, "low": value, "high": value}


def render_html(run: Run, report: dict, evaluation: Step) -> str:
    """One page without scripts or outside files: figures, kinds of questions, answers to listen to,
    what each step cost."""
    figures = [
        (key, text, _interval(report[key]), _goal(must), _goal(aim))
        for key, (text, must, aim, _) in GOALS.items()
        if key in report
    ]
    others = [
        (key, "", _interval(value), "", "")
        for key, value in report.items()
        if _is_figure(value) and key not in GOALS
    ]
    kinds = [
        (kind, _interval(v["text"]), _interval(v["speech"]))
        for kind, v in report["qa_by_kind"].items()
    ]
    steps = [
        (name, f"{s['wall_seconds']:.0f} s", f"{s['peak_memory_mb']:.0f} MB")
        for name, s in report["steps"].items()
    ]
    examples = read_json(evaluation.path / "examples.json")["examples"]
    spoken = []
    for number, example in enumerate(examples):
        if not (evaluation.path / f"example_{number:02d}_question.wav").exists():
            break
        mark = "right" if example["right_speech"] else "wrong"
        sound = [
            _player(evaluation.path / f"example_{number:02d}_{part}.wav")
            for part in ("question", "answer")
        ]
        spoken.append(
            (example["question"], sound[0], example["answered"], sound[1], example["judged"], mark)
        )
    title = f"SpeechGPT, recipe {run.recipe.name}, seed {run.recipe.seed}"
    machine = report["machine"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(machine['system'])}, "
        f"{html.escape(machine['cpu']['name'])}, {machine['cores']} cores, {machine['date']}. "
        f"{_baseline(report)} {_cut(report)}</p>"
        + _table(
            "Figures on held-out sentences (95 % bootstrap interval)",
            ("key", "what", "value", "must", "aim"),
            figures + others,
        )
        + _table("Right answers by kind of question", ("kind", "in text", "in speech"), kinds)
        + _table(
            "Listen",
            (
                "question",
                "as spoken",
                "answer in text",
                "answer in speech",
                "what the judge heard",
                "",
            ),
            spoken,
            raw={1, 3},
        )
        + _table("What each step cost", ("step", "wall", "peak memory"), steps)
        + "</html>\n"
    )


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}audio{width:14rem;height:2rem}"
    "th,td{text-align:left;padding:.3rem .8rem;border-bottom:1px solid #ddd}"
    "caption{text-align:left;font-weight:600;padding:.5rem 0}"
)


def _table(
    caption: str, heads: tuple[str, ...], rows: list[tuple], raw: set[int] = frozenset()
) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell if k in raw else html.escape(str(cell))}</td>" for k, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def _player(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


def _baseline(report: dict) -> str:
    if report["qa_baseline"] is None:
        return "The corpora have no questions with answers."
    share = f"{report['qa_baseline']['value']:.2f}"
    return f"A nearest-training-question baseline answers {share} of the questions."


def _cut(report: dict) -> str:
    """Which answers met their longest length, which the recipe's `generation` sets."""
    found = [f"{count} of {name}" for name, count in report["cut"].items() if count]
    return f"Answers cut at their longest length: {', '.join(found) or 'none'}."


def _is_figure(value: object) -> bool:
    return isinstance(value, dict) and {"value", "n", "low", "high"} <= value.keys()


def _interval(figure: dict) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f}, n = {figure['n']})"


def _goal(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
