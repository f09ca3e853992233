"""`speechgpt run | make | train | evaluate | ablate | plan | doctor`: making a run, part of it, and
scoring it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from speechgpt_lib.cli.options import (
    DEFAULT_RUN,
    ForceOption,
    JsonOption,
    RecipeOption,
    RunDirOption,
    RunOption,
    SeedOption,
    SetOption,
    ShardsOption,
    emit,
    figures,
    load,
    open_run,
    overrides,
    say,
    shard_slice,
)

ProcessesOption = Annotated[int, typer.Option(min=1, help="Processes to train or extract in.")]


def add_run_commands(app: typer.Typer) -> None:
    """Put these commands into the command line."""
    app.command("run")(run_recipe)
    for command in (make, train, evaluate, plan, ablate, doctor):
        app.command()(command)


def run_recipe(
    recipe: RecipeOption = "lab",
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    only: Annotated[str | None, typer.Option(help="Notebooks to run, such as 01,02.")] = None,
    force: ForceOption = False,
    seed: SeedOption = None,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks and steps at once.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the notebooks of a recipe; what is there and unchanged is reused."""
    from rich.console import Console

    from speechgpt_lib.doctor import check_jobs
    from speechgpt_lib.notebook.runner import run_notebooks
    from speechgpt_lib.recipes.loading import check_sources

    settings = load(recipe, changes, seed)
    folder = run_dir or Path("runs") / settings.name
    if dry_run:
        _dry_run(settings, folder, force, as_json)
        return
    check_sources(settings)
    check_jobs(jobs)
    names = [name.strip() for name in only.split(",")] if only else None
    given = {"overrides": overrides(changes, seed), "jobs": jobs}
    if as_json:  # what happens meanwhile doesn't mix with the result
        given["console"] = Console(stderr=True, highlight=False, soft_wrap=True)
    results = run_notebooks(recipe, folder, names, force, **given)
    if (folder / "09_talk_to_speechgpt" / "evaluation" / "facts.json").exists():
        from speechgpt_lib.evaluation.report import write_report

        write_report(open_run(folder, quiet=as_json))
        if not as_json:
            print(f"report    {folder / 'report.html'}")
            print(f"listen    {folder / '09_talk_to_speechgpt' / 'evaluation'}/*.wav")
            print(f'ask it    speechgpt ask "what is two plus three" --run {folder} -o answer.wav')
    if as_json:
        emit(
            {"run": str(folder), "notebooks": [asdict(r) | {"path": str(r.path)} for r in results]},
            "",
            True,
        )


def _dry_run(settings, folder: Path, force: bool, as_json: bool) -> None:
    from speechgpt_lib.pipeline.graph import plan as plan_steps
    from speechgpt_lib.pipeline.graph import render_plan
    from speechgpt_lib.runs.run import Run, refuse_older_layout

    refuse_older_layout(folder)
    planned = plan_steps(Run(folder, settings, say), force=force)
    emit({"steps": [asdict(step) for step in planned]}, render_plan(planned), as_json)


def make(
    steps: Annotated[
        list[str], typer.Argument(help="units, vocoder, stage1 …: see run --dry-run.")
    ],
    recipe: RecipeOption = "lab",
    run_dir: RunDirOption = None,
    changes: SetOption = None,
    seed: SeedOption = None,
    processes: ProcessesOption = 1,
    shards: ShardsOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make steps of a recipe and what they need; stopped and started again, it goes on."""
    import transformers

    from speechgpt_lib.pipeline.launch import check_steps, launch_steps
    from speechgpt_lib.runs.run import Run

    transformers.logging.set_verbosity_error()
    settings, part = load(recipe, changes, seed), shard_slice(shards)
    check_steps(steps, part, force)  # before anything is written
    run = Run.create(run_dir or Path("runs") / settings.name, settings, say)
    made = launch_steps(run, steps, processes, force, _progress(), part)
    facts = {step.name: {"folder": str(step.path), **step.metrics} for step in made}
    emit(facts, "\n".join(str(step.path) for step in made), as_json)


def add_step_command(app: typer.Typer, name: str, what: str, *steps: str) -> None:
    """Put a command into `app` that makes these steps, for those who look for it there."""

    def command(
        recipe: RecipeOption = "lab",
        run_dir: RunDirOption = None,
        changes: SetOption = None,
        seed: SeedOption = None,
        processes: ProcessesOption = 1,
        shards: ShardsOption = None,
        force: ForceOption = False,
        as_json: JsonOption = False,
    ) -> None:
        make(list(steps), recipe, run_dir, changes, seed, processes, shards, force, as_json)

    command.__doc__ = f"{what}; the same as `speechgpt make {' '.join(steps)}`."
    app.command(name)(command)


def _progress():
    """Says a row of a training's log now and then, or how much of a corpus is done."""
    import time

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
    step: Annotated[
        str, typer.Argument(help="hubert, vocoder, text_to_unit, text_model, stage1 …")
    ],
    run: RunOption = DEFAULT_RUN,
    processes: ProcessesOption = 1,
    force: ForceOption = False,
) -> None:
    """Make one trained step of an existing run, in one process or several."""
    from speechgpt_lib.pipeline.launch import train_step

    train_step(open_run(run), step, processes, force)


def evaluate(
    run: RunOption = DEFAULT_RUN,
    set_folder: Annotated[
        Path | None, typer.Option("--set", help="A folder made by `speechgpt corpora sample`.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a run on its held-out speech, or on any set; writes report.json (and report.html)
    there."""
    opened = open_run(run, quiet=as_json)
    if set_folder is not None:
        from speechgpt_lib.evaluation.measure import evaluate_set
        from speechgpt_lib.runs.artefacts import write_json

        report, path = evaluate_set(opened, set_folder), set_folder / "report.json"
        write_json(path, report)
    else:
        from speechgpt_lib.evaluation.report import write_report
        from speechgpt_lib.pipeline.graph import make as make_step

        make_step(opened, "evaluation", force)
        report, path = write_report(opened), opened.path / "report.json"
    emit(report, f"{figures(report)}\nwrote {path}", as_json)


def plan(
    recipe: RecipeOption = "release",
    changes: SetOption = None,
    gpus: Annotated[int, typer.Option(min=1)] = 8,
    gpu_memory: Annotated[float, typer.Option(min=1, help="GB of each GPU.")] = 80.0,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the matmul peak that training reaches.")
    ] = 0.4,
    peak_tflops: Annotated[
        float, typer.Option(min=0.01, help="The matmul peak of a GPU; 989 is an H100 in bf16.")
    ] = 989.0,
    as_json: JsonOption = False,
) -> None:
    """Say what the three stages need on so many GPUs: memory, tokens, hours, disk; refuse what
    can't fit."""
    from speechgpt_lib.language_model import planning

    settings = load(recipe, changes)
    found = planning.plan(settings, gpus, gpu_memory, mfu=mfu, peak_tflops=peak_tflops)
    result = found | {"stages": [asdict(stage) for stage in found["stages"]]}
    emit(result, planning.render(found), as_json)


def ablate(
    without: Annotated[str, typer.Argument(help="stage1, stage2 or stage3.")],
    run: RunOption = DEFAULT_RUN,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate a finished run again without one of the three stages."""
    from speechgpt_lib.pipeline.extensions import ablate as ablate_run

    report = ablate_run(open_run(run, quiet=as_json), without)
    emit(report, figures(report), as_json)


def doctor(
    run: RunOption = DEFAULT_RUN,
    jobs: Annotated[int, typer.Option(min=1, help="As for `speechgpt run --jobs`.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Check versions, memory, disk, devices and optional parts; exit code 1 without a required
    one."""
    from rich.console import Console

    from speechgpt_lib.doctor import diagnose, render

    checks = diagnose(run, jobs)
    if as_json:
        emit([asdict(check) for check in checks], "", True)
    else:
        Console().print(render(checks))
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(1)
