"""The command line: a thin layer that parses arguments, calls one function and prints a result or
one line of error."""

from __future__ import annotations

import os
import signal
import sys

import typer

from speechgpt_lib import __version__
from speechgpt_lib.cli import cluster, runs, talk
from speechgpt_lib.cli.corpora import corpora_app
from speechgpt_lib.cli.instruct import instruct_app
from speechgpt_lib.cli.text_to_unit import text_to_unit_app
from speechgpt_lib.cli.units import units_app
from speechgpt_lib.cli.vocoder import speak, vocoder_app
from speechgpt_lib.cli.voice import voice_app
from speechgpt_lib.errors import UserError, one_line, out_of_memory
from speechgpt_lib.runs.artefacts import escaped
from speechgpt_lib.runs.processes import end_soon
from speechgpt_lib.runs.slurm_task import watched_by_slurm

app = typer.Typer(
    help="SpeechGPT as a course you can run: train one, ask it something, hear it answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(talk.transcribe)
app.command("say")(talk.say_text)
app.command()(talk.ask)
app.command()(speak)
app.command("run")(runs.run_recipe)
for command in (runs.make, runs.train, runs.evaluate, runs.pairs, runs.ablate):
    app.command()(command)
for command in (runs.plan, runs.fetch, runs.doctor):
    app.command()(command)
app.command()(cluster.status)
app.command()(cluster.cancel)
app.add_typer(corpora_app, name="corpora")
app.add_typer(units_app, name="units")
app.add_typer(vocoder_app, name="vocoder")
app.add_typer(text_to_unit_app, name="text-to-unit")
app.add_typer(instruct_app, name="instruct")
app.add_typer(voice_app, name="voice")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit code 1, an interruption exit
    code 130."""
    signal.signal(signal.SIGTERM, _interrupt)
    end_soon()
    # What the terminal's encoding lacks is printed as \u2192, here and in child processes.
    for stream in (s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure")):
        stream.reconfigure(errors="backslashreplace")
        os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:backslashreplace"
    try:
        with watched_by_slurm():
            status = app(standalone_mode=False)
        if status == 130:  # typer answers an interruption so, instead of raising it
            print("stopped; what is finished is kept", file=sys.stderr)
        sys.exit(status)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, typer.Abort) as error:
        reason = f": {error}" if str(error) else ""
        print(f"stopped{reason}; what is finished is kept", file=sys.stderr)
        sys.exit(130)
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        what = f"{escaped(error.object)[:200]} is no {error.encoding}"
        sys.exit(f"error: {what}: rename the file or folder, or save the text as UTF-8")
    except Exception as error:
        # Wrong options and arguments, in the words of the command-line library.
        if hasattr(error, "format_message"):
            print(f"error: {error.format_message()} (see --help)", file=sys.stderr)
            sys.exit(getattr(error, "exit_code", 2))
        if out_of_memory(error):
            cure = "close other programs, raise `ulimit -v`, or do less at once (--jobs 1)"
            sys.exit(f"error: memory ran out ({one_line(error)}): {cure}")
        if not isinstance(error, OSError):
            raise
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"error: {error.strerror or error}{where}; nothing finished was lost")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
