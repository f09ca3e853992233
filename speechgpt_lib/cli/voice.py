"""`speechgpt voice record | adapt | list | remove`: a run learns your own voice."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import typer

from speechgpt_lib.cli.options import LAB, AsJson, RunPath, argument, emit, open_run, option, say
from speechgpt_lib.errors import UserError

voice_app = typer.Typer(help="Adapt a run to your own voice.", no_args_is_help=True)
Name = argument(str, "A name for the voice: letters, digits, - and _.")


@voice_app.command()
def record(
    name: Name,
    folder: option(Path | None, "A folder of recordings with their texts.", "--from") = None,
    prompts: option(Path | None, "Write sentences to read into this file.") = None,
    count: option(int, "How many sentences to read.", "-n", min=1, max=1000) = 40,
    consent: option(bool, "Accept the consent text.", "--consent") = False,
    run: RunPath = LAB,
    as_json: AsJson = False,
) -> None:
    """Check recordings one by one and keep the good ones; or write a list of sentences to read."""
    from speechgpt_lib.voices.prompts import prompts as choose
    from speechgpt_lib.voices.prompts import write_prompts
    from speechgpt_lib.voices.recording import Recorder
    from speechgpt_lib.voices.store import CONSENT, Voice

    voice = Voice(open_run(run, quiet=True), name)
    if prompts is not None:
        texts = choose(voice.run, count)
        write_prompts(prompts, texts)
        how = "record each as the file named before it, put the list beside them, then --from DIR"
        return emit(
            {"prompts": texts}, f"wrote {len(texts)} sentences to {prompts}: {how}", as_json
        )
    if folder is None:
        ways = "record in notebook 11, or get sentences by --prompts FILE, record, then --from DIR"
        raise UserError(f"a terminal has no microphone: {ways}")
    if not consent and not voice.has_consent() and sys.stdin.isatty():
        consent = typer.confirm(f"{CONSENT}\nDo you accept this?", err=True)
    recorder = Recorder.open(voice, consent, say)
    kept, refused = recorder.add_folder(folder, say)
    whole = len(voice.records())
    facts = {"voice": name, "kept": kept, "refused": refused, "recordings": whole}
    text = f"kept {kept}, refused {refused}; voice {name} has {whole} recordings"
    emit(facts, f"{text}\nnext: speechgpt voice adapt {name} --run {run}", as_json)


@voice_app.command()
def adapt(
    name: Name,
    speak: option(bool, "Let the vocoder answer in this voice, too.", "--speak") = False,
    run: RunPath = LAB,
    as_json: AsJson = False,
) -> None:
    """Adapt the run to a voice: the encoder that hears it, and stage 2 that understands it."""
    import transformers

    from speechgpt_lib.voices.adaptation import adapt as adapt_to
    from speechgpt_lib.voices.adaptation import speak as speak_as
    from speechgpt_lib.voices.store import Voice

    transformers.logging.set_verbosity_error()
    voice = Voice(open_run(run, quiet=True), name)
    facts = adapt_to(voice, say)
    what = {"voice_wer": "words wrong, this voice", "own_wer": "words wrong, the run's voices"}
    what["own_answers"] = "right answers, the run's voices"
    lines = [f"adapted to {name} with {facts['sentences']} sentences"]
    for key, meaning in what.items():
        if f"{key}_before" in facts:
            pair = [facts[f"{key}_{when}"] for when in ("before", "after")]
            values = " → ".join(f"{f['value']:.3f}" for f in pair)
            between = f"{pair[1]['low']:.3f} to {pair[1]['high']:.3f}, n = {pair[1]['n']}"
            lines.append(f"{meaning:32} {values}   ({between})")
    if speak:
        facts["speaking"] = told = speak_as(voice, say)
        both = f"{told['distortion_db_before']:.2f} → {told['distortion_db_after']:.2f} dB"
        lines.append(f"{'off its sound (lower is nearer)':32} {both}")
    lines.append(f"ask it: speechgpt ask question.wav --voice {name} --run {run}")
    emit(facts, "\n".join(lines), as_json)


@voice_app.command("list")
def list_voices(run: RunPath = LAB, as_json: AsJson = False) -> None:
    """List the voices of a run."""
    from speechgpt_lib.voices.store import overview

    found = overview(open_run(run, quiet=True))
    lines = [f"{v.name:20} {v.recordings:>4} recordings  {v.state}" for v in found]
    emit([asdict(v) for v in found], "\n".join(lines) or "no voices", as_json)


@voice_app.command()
def remove(name: Name, run: RunPath = LAB, as_json: AsJson = False) -> None:
    """Delete all there is of a voice: recordings, consent, models, and traces in other files."""
    from speechgpt_lib.voices.removal import remove as take_away
    from speechgpt_lib.voices.store import Voice

    voice = Voice(open_run(run, quiet=True), name)
    changed = [str(path) for path in take_away(voice)]
    more = "".join(f"\nand from {path}" for path in changed)
    text = f"removed {voice.path}{more}\nnothing of it is left in {run}"
    emit({"removed": str(voice.path), "changed": changed}, text, as_json)
