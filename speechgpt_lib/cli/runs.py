"""`speechgpt run | make | train | evaluate | pairs | ablate | plan | fetch | doctor`: making a run,
part of it, scoring it, and what it needs."""

from __future__ import annotations

import inspect
import re
import time
from dataclasses import asdict
from pathlib import Path

import typer

from speechgpt_lib.cli import options
from speechgpt_lib.cli.options import argument, emit, load, open_run, option, say
from speechgpt_lib.errors import UserError


def run_recipe(
    recipe: options.RecipeName = "lab",
    run_dir: options.RunDir = None,
    changes: options.Changes = None,
    only: option(str | None, "Notebooks to run, such as 01,02.") = None,
    force: options.Force = False,
    seed: options.Seed = None,
    jobs: option(int | None, "Notebooks and steps at once: 2, if memory allows.", min=1) = None,
    dry_run: option(bool, "Only say what would be done.", "--dry-run") = False,
    allow_program: options.AllowProgram = False,
    verify: option(bool, "First compare all finished files with their hashes.", "--verify") = False,
    on: option(str | None, "slurm: submit it as jobs of a cluster.", "--on") = None,
    site: option(Path | None, "A file about the cluster, for --on slurm.") = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the notebooks of a recipe; what is there and unchanged is reused."""
    from rich.console import Console

    from speechgpt_lib.cli.cluster import run_on_slurm
    from speechgpt_lib.doctor import chosen_jobs
    from speechgpt_lib.notebook.runner import run_notebooks
    from speechgpt_lib.recipes.loading import check_sources
    from speechgpt_lib.runs.artefacts import verify_outputs
    from speechgpt_lib.runs.run import Run

    settings = load(recipe, changes, seed)
    folder = run_dir or Path("runs") / settings.name
    if verify:
        finished = [facts.parent for facts in folder.glob("[0-9][0-9]_*/*/facts.json")]
        say(f"verified {len([*map(verify_outputs, finished)])} finished steps in {folder}")
    if on is not None or site is not None:
        here = {"--only": only, "--force": force, "--jobs": jobs, "--allow-program": allow_program}
        _check_elsewhere(on, [name for name, value in here.items() if value])
        if not dry_run:
            check_sources(settings)
        return run_on_slurm(settings, folder, site, dry_run, as_json)
    if dry_run:
        return _dry_run(settings, folder, force, as_json)
    check_sources(settings)
    run = Run(folder, settings)
    run.refuse_another(force)  # before what is allowed is written there
    run.check_program(allow_program)
    jobs = chosen_jobs(jobs)
    names = [name.strip() for name in only.split(",")] if only else None
    given = {"overrides": options.overrides(changes, seed), "jobs": jobs}
    if as_json:  # what happens meanwhile doesn't mix with the result
        given["console"] = Console(stderr=True, highlight=False, soft_wrap=True)
    results = run_notebooks(recipe, folder, names, force, **given)
    lines, evaluation = [], folder / "09_talk_to_speechgpt" / "evaluation"
    if (evaluation / "facts.json").exists():
        from speechgpt_lib.evaluation.report import write_report

        write_report(open_run(folder, quiet=as_json))
        lines = [f"report    {folder / 'report.html'}", f"listen    {evaluation}/*.wav"]
        question = '"what is two plus three"' if settings.lab else "question.wav"
        lines += [f"ask it    speechgpt ask {question} --run {folder} -o answer.wav"]
    made = [asdict(result) | {"path": str(result.path)} for result in results]
    if as_json or lines:
        emit({"run": str(folder), "notebooks": made}, "\n".join(lines), as_json)


def _check_elsewhere(on: str | None, others: list[str]) -> None:
    """Refuses another cluster than Slurm, and options that its jobs don't have."""
    if on != "slurm":
        raise UserError(f"--on {on!r}: only slurm is known" if on else "--site is for --on slurm")
    if others:
        raise UserError(f"{others[0]} is not for --on slurm, which submits all that is missing")


def _dry_run(settings, folder: Path, force: bool, as_json: bool) -> None:
    from speechgpt_lib.pipeline.graph import plan as plan_steps
    from speechgpt_lib.pipeline.graph import render_plan
    from speechgpt_lib.runs.run import Run, refuse_older_layout

    refuse_older_layout(folder)
    planned = plan_steps(Run(folder, settings, say), force=force)
    emit({"steps": [asdict(step) for step in planned]}, render_plan(planned), as_json)


def make(
    steps: argument(list[str], "units, vocoder, stage1 …: see run --dry-run."),
    recipe: options.RecipeName = "lab",
    run_dir: options.RunDir = None,
    changes: options.Changes = None,
    seed: options.Seed = None,
    processes: options.Processes = 1,
    shards: option(str | None, "Only shards A:B, or K::N: every N-th from K (array job).") = None,
    force: options.Force = False,
    allow_program: options.AllowProgram = False,
    as_json: options.AsJson = False,
) -> None:
    """Make steps of a recipe and what they need; stopped and started again, it goes on."""
    import transformers

    from speechgpt_lib.pipeline.launch import check_steps, launch_steps
    from speechgpt_lib.runs.run import Run

    transformers.logging.set_verbosity_error()
    settings, part = load(recipe, changes, seed), _shard_slice(shards)
    check_steps(steps, part, force)  # before anything is written
    run = Run.create(run_dir or Path("runs") / settings.name, settings, say)
    run.check_program(allow_program)
    made = launch_steps(run, steps, processes, force, _progress(), part)
    facts = {step.name: {"folder": str(step.path), **step.metrics} for step in made}
    emit(facts, "\n".join(str(step.path) for step in made), as_json)


def add_step_command(app: typer.Typer, name: str, what: str, *steps: str) -> None:
    """Put a command into `app` that makes these steps, for those who look for it there: it has the
    options of `make`."""

    def command(**given) -> None:
        make(list(steps), **given)

    whole = inspect.signature(make, eval_str=True)
    command.__signature__ = whole.replace(parameters=[*whole.parameters.values()][1:])
    app.command(name, help=f"{what}; the same as `speechgpt make {' '.join(steps)}`.")(command)


def _shard_slice(text: str | None) -> slice | None:
    """`A:B` or `K::N` as a slice."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d*):(\d*)(?::(\d*[1-9]\d*)?)?", text)
    if match is None:
        expected = "expected A:B, such as 0:10, or K::N for every N-th from K"
        raise UserError(f"--shards {text!r} is no range: {expected}")
    return slice(*(int(part) if part else None for part in match.groups()))


def _progress():
    """Says a row of a training's log now and then, or how much of a corpus is done."""
    from speechgpt_lib.notebook.progress import describe

    told = time.monotonic()

    def tell(row: dict) -> None:
        nonlocal told
        if time.monotonic() - told < 10:
            return
        told = time.monotonic()
        if "loss" in row:
            say(f"  {describe(row)}")
        elif "shards" in row:
            say(f"  {row['shards']} of {row['of']} shards")

    return tell


def train(
    step: argument(str, "hubert, vocoder, text_to_unit, text_model, stage1 …"),
    run: options.RunPath = options.LAB,
    processes: options.Processes = 1,
    force: options.Force = False,
) -> None:
    """Make one trained step of an existing run, in one process or several."""
    from speechgpt_lib.pipeline.launch import train_step

    train_step(open_run(run), step, processes, force)


def evaluate(
    run: options.RunPath = options.LAB,
    set_folder: option(Path | None, "A folder made by `speechgpt corpora sample`.", "--set") = None,
    voice: options.VoiceName = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Score a run on its held-out speech, or on any set; writes report.json (and report.html)
    there."""
    from speechgpt_lib.evaluation.measure import evaluate_set
    from speechgpt_lib.evaluation.report import write_report
    from speechgpt_lib.pipeline.graph import make as make_step
    from speechgpt_lib.runs.artefacts import write_json

    opened = open_run(run, quiet=as_json)
    path = (set_folder or opened.path) / "report.json"
    if voice is not None and set_folder is None:
        raise UserError("--voice needs --set: a run's own report is that of its own voices")
    if set_folder is not None:
        report = evaluate_set(opened, set_folder, voice)
        write_json(path, report)
    else:
        make_step(opened, "evaluation", force)
        report = write_report(opened)
    emit(report, f"{_figures(report)}\nwrote {path}", as_json)


def pairs(
    folder: argument(Path, "A set of minimal pairs as published: sWUGGY, sBLIMP, SALMon …"),
    run: options.RunPath = options.LAB,
    stage: option(list[str] | None, "expanded_model, stage1 or stage2; repeatable. [all]") = None,
    total: option(bool, "Sum over a recording's tokens, not their mean.", "--total") = False,
    scores: option(Path | None, "Also write NAME SCORE lines, of the last stage.") = None,
    as_json: options.AsJson = False,
) -> None:
    """Of two recordings, which does a model find likelier? Chance is a half."""
    from speechgpt_lib.evaluation.minimal_pairs import score_set
    from speechgpt_lib.runs.artefacts import write_text

    opened = open_run(run, quiet=as_json)
    found = score_set(opened, folder, stage, per_token=not total)
    if scores is not None:
        lines = (f"{Path(name).stem} {score:.6f}\n" for name, score in found.scores.items())
        write_text(scores, "".join(lines))
    named = found.accuracy.items()
    figures = {f"{name} {part}": v for name, parts in named for part, v in parts.items()}
    result = {"set": str(folder), "per_token": not total, "accuracy": found.accuracy}
    emit(result, _figures(figures), as_json)


def ablate(
    without: argument(str, "stage1, stage2 or stage3."),
    run: options.RunPath = options.LAB,
    as_json: options.AsJson = False,
) -> None:
    """Train and evaluate a finished run again without one of the three stages."""
    from speechgpt_lib.pipeline.extensions import ablate as ablate_run

    report = ablate_run(open_run(run, quiet=as_json), without)
    emit(report, _figures(report), as_json)


def _figures(report: dict) -> str:
    """The figures of a report, a line each, with their intervals."""
    from speechgpt_lib.evaluation.report import figures_of

    return "\n".join(
        f"{key:28} {v['value']:8.3f}   ({v['low']:.3f} to {v['high']:.3f}, n = {v['n']})"
        for key, v in figures_of(report).items()
    )


def plan(
    recipe: options.RecipeName = "release",
    changes: options.Changes = None,
    gpus: option(int, "How many.", min=1) = 8,
    gpu_memory: option(float, "GB of each GPU.", min=1) = 80.0,
    mfu: option(float, "Share of the matmul peak that training reaches.", min=0.01, max=1) = 0.4,
    peak_tflops: option(float, "A GPU's matmul peak; 989: an H100 in bf16.", min=0.01) = 989.0,
    measure: option(
        bool, "Time a few steps on this machine instead of assuming.", "--measure"
    ) = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what the three stages need on so many GPUs: memory, tokens, hours, disk; refuse what
    can't fit."""
    from speechgpt_lib.language_model import planning, timing
    from speechgpt_lib.training.devices import resolve_device

    settings, seconds = load(recipe, changes), None
    if measure:
        seconds = timing.measure(settings, resolve_device(settings.device))
    found = planning.plan(settings, gpus, gpu_memory, mfu, peak_tflops, seconds)
    result = found | {"stages": [asdict(stage) for stage in found["stages"]]}
    emit(result, planning.render(found), as_json)


def fetch(
    recipe: options.RecipeName = "small",
    out: option(Path, "The folder to fill: for --set data=DIR.", "--out", "-o") = Path("data"),
    changes: options.Changes = None,
    only_list: option(bool, "Only say what is needed, from where.", "--list") = False,
    as_json: options.AsJson = False,
) -> None:
    """Get what a recipe reads: download what is public, print the steps for the rest. Interrupted,
    it resumes."""
    from speechgpt_lib.cli.corpora import progress_bar
    from speechgpt_lib.pipeline import fetch as room

    settings, data = load(recipe, changes), out.expanduser()
    if only_list:
        left = room.parts_of(settings)
    else:
        with progress_bar(settings.name) as progress:
            left = room.fetch(settings, data, say, progress)
    facts = [_part_facts(part, data) for part in left]
    text = room.render(left, data)
    if not only_list:
        ready = f"all is there: speechgpt run --recipe {recipe} --set data={out}"
        text = f"to be had by hand, into {out}:\n{text}" if left else ready
    emit({"folder": str(out), "parts" if only_list else "by_hand": facts}, text, as_json)


def _part_facts(part, data: Path) -> dict:
    names = ("path", "what", "size", "licence", "source")
    return {name: getattr(part, name) for name in names} | {"state": part.state(data)}


def doctor(
    run: options.RunPath = options.LAB,
    jobs: option(int, "As for `speechgpt run --jobs`.", min=1) = 1,
    recipe: option(str | None, "Also look for what this recipe reads.") = None,
    changes: options.Changes = None,
    on: option(str | None, "slurm: also look at the cluster, by a job of a minute.", "--on") = None,
    site: option(Path | None, "A file about the cluster, for --on slurm.") = None,
    as_json: options.AsJson = False,
) -> None:
    """Check versions, memory, disk, devices and optional parts, and what a recipe reads; exit code
    1 without a required one."""
    from rich.console import Console

    from speechgpt_lib.cli.cluster import cluster_checks
    from speechgpt_lib.doctor import check_parts, diagnose, render

    if on is not None or site is not None:
        _check_elsewhere(on, [])
    settings = load(recipe, changes) if recipe is not None else None
    checks = diagnose(run, jobs)
    checks += check_parts(settings) if settings else []
    checks += cluster_checks(run, site, settings) if on else []
    if as_json:
        emit([asdict(check) for check in checks], "", True)
    else:
        Console().print(render(checks))
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(1)
