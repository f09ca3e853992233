"""A voice's recordings → the run adapted to it, and what that is worth, in figures.

1. Some recordings are kept aside: they only measure.
2. The corpus' synthesiser (or the run itself) says the sentences: references for the encoder.
3. The encoder learns to hear the voice (hearing.py), then stage 2 to understand it
   (understanding.py); the adapter of stage 3 stays as it is.
4. Sentences kept aside, and held-out ones in the run's own voices, are transcribed and answered
   before and after.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import transformers

from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.corpora.tables import Utterance, hear, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import generation
from speechgpt_lib.language_model.adapters import attach_adapter
from speechgpt_lib.language_model.model import load_model, save_model
from speechgpt_lib.language_model.vocabulary import UnitVocabulary
from speechgpt_lib.metrics.unit_errors import bootstrap_mean, bootstrap_ratio, word_errors
from speechgpt_lib.recipes.schema import Optimization, VoiceSettings
from speechgpt_lib.runs.artefacts import atomic_path, hash_json, locked, read_json, write_json
from speechgpt_lib.runs.machine import return_free_memory
from speechgpt_lib.runs.run import Run
from speechgpt_lib.runs.seeds import shuffled
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.voices.hearing import adapt_encoder
from speechgpt_lib.voices.speaking import adapt_vocoder, likeness
from speechgpt_lib.voices.store import Recording, Voice
from speechgpt_lib.voices.understanding import adapt_stage2

FULL = 40  # sentences to which the steps of the recipe belong
ANSWERED = 40  # held-out questions in the run's own voices


@dataclass(frozen=True)
class Adapted:
    """What of a run is another for a voice: the encoder of its units, and the stage-2 model."""

    inventory: UnitInventory
    model: transformers.PreTrainedModel
    vocabulary: UnitVocabulary

    @classmethod
    def of_run(cls, run: Run) -> Adapted:
        """The run as it is."""
        model, vocabulary = load_model(run.require("stage2").path)
        return cls(UnitInventory.load(run.require("inventory").path), model, vocabulary)

    @classmethod
    def load(cls, voice: Voice) -> Adapted:
        """What `adapt` made.  UserError where it has not, or for a stage 2 that is another now."""
        voice.require()
        how = f"`speechgpt voice adapt {voice.name} --run {voice.run.path}`"
        if not (voice.model / "facts.json").is_file():
            raise UserError(f"the run is not yet adapted to voice {voice.name!r}: {how}")
        facts, stage2 = read_json(voice.model / "facts.json", how), voice.run.require("stage2")
        if facts["stage2"] != stage2.key:
            what = f"the run's stage 2 was made anew since it was adapted to voice {voice.name!r}"
            raise UserError(f"{what}: do it again by {how}")
        inventory = UnitInventory.load(voice.run.require("inventory").path)
        load_module(inventory.encoder, voice.model / "encoder.safetensors")
        return cls(inventory, *load_model(voice.model / "stage2"))

    def save(self, folder: Path) -> None:
        """Write into `folder`."""
        save_model(self.model.cpu(), self.vocabulary, folder / "stage2")
        save_module(self.inventory.encoder, folder / "encoder.safetensors")

    def transcribe(self, waves: Sequence[np.ndarray], run: Run) -> list[str]:
        """Waves (samples,) at 16 kHz → texts."""
        units = [self.inventory.encode(wave)[0] for wave in waves]
        limit, templates = run.recipe.generation.transcript, run.recipe.instructions.templates
        heard = generation.transcribe(self.model, self.vocabulary, units, limit, templates)
        return [written.text for written in heard]


def adapt(
    voice: Voice,
    say: Callable[[str], None] = print,
    on_log: Callable[[dict], None] | None = None,
    sentences: int | None = None,
    measured: Mapping[str, object] | None = None,
) -> dict:
    """Adapt the run to a voice, into RUN/voices/NAME/model; returns the figures of facts.json.

    `sentences`: only so many of the recordings, for the curve of error over sentences; then the
    figures are returned and nothing is kept.  `measured`: figures of an earlier adaptation to these
    recordings, which tell how the run was before.  Raises UserError where a step of the run is
    missing, or the voice has too few recordings.
    """
    run, started = voice.run, time.process_time()
    learned, aside = split(voice.recordings(), run)
    learned = learned[:sentences]
    corpora = open_corpora(run.recipe, run.require("corpus").path, say)
    before = Adapted.of_run(run)
    busy = f"voice {voice.name!r} is being adapted by another process: wait for it"
    with locked(voice.path.with_name(f"{voice.name}.lock"), busy):
        work = voice.path / "work"
        shutil.rmtree(work, ignore_errors=True)
        try:
            after, cost = _learn(before, learned, corpora, run, work, say, on_log)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return_free_memory()
        say("measuring: sentences kept aside, and held-out ones in the run's own voices")
        facts = {
            "sentences": len(learned),
            "kept_aside": len(aside),
            "stage2": run.require("stage2").key,
        }
        facts |= cost
        facts |= {k: v for k, v in (measured or {}).items() if k.endswith("_before")}
        models = {"after": after} if measured else {"before": before, "after": after}
        facts |= _measure(run, corpora, aside, models)
        facts["cpu_seconds"] = round(time.process_time() - started, 1)
        if sentences is None:
            with atomic_path(voice.model) as folder:
                folder.mkdir()
                after.save(folder)
                write_json(folder / "facts.json", facts)
    return facts


def curve(voice: Voice, sizes: Sequence[int], say: Callable[[str], None] = print) -> list[dict]:
    """The figures of `adapt` for the first `sizes` recordings, and for all of them, by size.

    Each is a training of its own.  What was measured before is kept in RUN/voices/NAME/curve.json,
    for as long as recordings, settings and stage 2 stay the same.
    """
    path, run = voice.path / "curve.json", voice.run
    settings = run.recipe.voice.model_dump(mode="json")
    known = [voice.require().records(), settings, run.require("stage2").key, run.recipe.seed]
    key, points = hash_json(known), {}
    if path.is_file() and (kept := read_json(path)).get("key") == key:
        points = {point["sentences"]: point for point in kept["points"]}
    most = len(split(voice.recordings(), run)[0])
    for size in [*sorted(n for n in sizes if n < most), most]:
        if size not in points:
            known, part = next(iter(points.values()), None), None if size == most else size
            point = adapt(voice, say, sentences=part, measured=known)
            points[size] = {
                k: v for k, v in point.items() if k not in ("listening", "understanding")
            }
            write_json(path, {"key": key, "points": list(points.values())})
    return [points[n] for n in sorted(points)]


def speak(
    voice: Voice,
    say: Callable[[str], None] = print,
    on_log: Callable[[dict], None] | None = None,
) -> dict:
    """Let the run answer in a voice that it was adapted to: RUN/voices/NAME/vocoder.

    Returns the mel-cepstral distortion (dB) of recordings kept aside, spoken from their own units
    by the run's vocoder and by the adapted one; it also stands in facts.json there.
    """
    run, adapted = voice.run, Adapted.load(voice)
    learned, aside = split(voice.recordings(), run)
    say(f"speaking: the vocoder learns from {len(learned)} sentences")
    options = TrainingOptions(run.recipe.seed, resolve_device(run.recipe.device), 1, on_log)
    before, work = Vocoder.load(run.require("vocoder").path), voice.path / "work"
    shutil.rmtree(work, ignore_errors=True)
    try:
        given = ([r.wave for r in learned], run.recipe.voice, work, options)
        after, told = adapt_vocoder(before, adapted.inventory, *given)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    waves, facts = [r.wave for r in aside], {"seconds": sum(t["seconds"] for t in told.values())}
    for when, vocoder in (("before", before), ("after", after)):
        facts[f"distortion_db_{when}"] = likeness(vocoder, adapted.inventory, waves)
    with atomic_path(voice.vocoder) as folder:
        folder.mkdir()
        after.save(folder)
        write_json(folder / "facts.json", facts)
    return facts


def split(recordings: list[Recording], run: Run) -> tuple[list[Recording], list[Recording]]:
    """Those to learn from, in the order of recording, and those kept aside, drawn by the seed."""
    count = max(1, round(run.recipe.voice.kept_aside * len(recordings)))
    aside = set(Random(f"aside {run.recipe.seed}").sample(range(len(recordings)), count))
    both = [[r for k, r in enumerate(recordings) if (k in aside) == kept] for kept in (False, True)]
    return both[0], both[1]


def references(
    texts: list[str], adapted: Adapted, corpora: Corpora, run: Run
) -> list[np.ndarray | None]:
    """Features (frames, width) of texts, as the synthesiser of the corpus, or the run, says them;
    None for a text of which it says nothing."""
    if waves := corpora.speak([corpora.normalise(text) for text in texts]):
        return [adapted.inventory.features(wave) for wave in waves]
    vocoder = Vocoder.load(run.require("vocoder").path)
    limit, templates = run.recipe.generation.speech, run.recipe.instructions.templates
    normal = [corpora.normalise(text) for text in texts]
    spoken = generation.speak(adapted.model, adapted.vocabulary, normal, limit, templates)
    centroids = adapted.inventory.kmeans.centroids
    return [
        centroids[np.repeat(said.units, vocoder.predict_durations(said.units))]
        if len(said.units)
        else None
        for said in spoken
    ]


def _learn(before, learned, corpora, run, work, say, on_log) -> tuple[Adapted, dict]:
    """The run, adapted to recordings; what that took."""
    say(f"hearing: the encoder learns from {len(learned)} sentences")
    device = resolve_device(run.recipe.device)
    options = TrainingOptions(run.recipe.seed, device, 1, on_log)
    recipe = run.recipe.model_copy(update={"voice": _for(run.recipe.voice, len(learned))})
    normal = [Recording(corpora.normalise(r.text), r.wave) for r in learned]
    normal = [recording for recording in normal if recording.text]
    said = references([r.text for r in normal], before, corpora, run)
    pairs = [(r.wave, y) for r, y in zip(normal, said, strict=True) if y is not None]
    inventory, heard = before.inventory, {}
    if pairs:
        waves, targets = zip(*pairs, strict=True)
        own = [u.wave for u in _heard(run, "train", recipe.voice.own_utterances)]
        more = (recipe.voice, work, options)
        inventory, heard = adapt_encoder(before.inventory, waves, targets, own, *more)
        del own
    return_free_memory()
    say("understanding: stage 2 learns the units of this voice")
    model, vocabulary = load_model(run.require("stage2").path)
    known = run.find("cross_modal_set")  # an imported stage 2 comes without
    given = (normal, known and known.path, corpora, recipe, work / "stage2", options)
    understood = adapt_stage2(model, vocabulary, inventory, *given)
    cost = {"listening": heard, "understanding": understood}
    return Adapted(inventory, model, vocabulary), cost


def _for(settings: VoiceSettings, sentences: int) -> VoiceSettings:
    """The settings with fewer steps for fewer sentences than 40: they are learned by heart."""
    share = min(1.0, (sentences / FULL) ** 0.5)

    def fewer(optimization: Optimization) -> Optimization:
        steps = max(1, round(share * optimization.steps))
        return optimization.model_copy(update={"steps": steps})

    both = {"listening": fewer(settings.listening), "stage2": fewer(settings.stage2)}
    return settings.model_copy(update=both)


def _heard(run: Run, split: str, count: int, question: bool = False) -> list[Utterance]:
    """`count` utterances of a split with their sound, drawn by the seed."""
    table = run.require("corpus").path
    rows = read_utterances(table, where={"split": split})
    ids = [u.id for u in rows if u.answer or not question]
    chosen = set(shuffled(ids, run.recipe.seed)[:count])
    return list(hear(table, {"id": chosen})) if chosen else []


def _measure(run: Run, corpora: Corpora, aside: list[Recording], models: dict) -> dict:
    """Word error rates and right answers of both models, each with its interval."""
    own = _heard(run, "test", run.recipe.voice.test_utterances)
    questions = _heard(run, "test", ANSWERED, question=True)
    return_free_memory()
    figures = {}
    for when, adapted in models.items():
        for who, spoken in (("voice", aside), ("own", own)):
            heard = adapted.transcribe([item.wave for item in spoken], run)
            figures[f"{who}_wer_{when}"] = _wer(spoken, heard, corpora, run)
        if questions:
            figures[f"own_answers_{when}"] = _answers(run, adapted, questions)
    return figures


def _wer(spoken: Sequence, heard: list[str], corpora: Corpora, run: Run) -> dict:
    pairs = zip((corpora.normalise(item.text) for item in spoken), heard, strict=True)
    errors, words = zip(
        *(word_errors(text, corpora.normalise(h)) for text, h in pairs), strict=True
    )
    draws = run.recipe.evaluation.bootstrap_draws
    return asdict(bootstrap_ratio(errors, words, draws=draws))


def _answers(run: Run, adapted: Adapted, questions: list[Utterance]) -> dict:
    """The share of spoken questions answered rightly in text, with the adapter of stage 3."""
    limits, templates = run.recipe.generation, run.recipe.instructions.templates
    reply = "speech" if templates == "release" else "text"
    limit = limits.spoken_answer if reply == "speech" else limits.written_answer
    model = attach_adapter(adapted.model, run.require("stage3").path, trust=True)
    units = [adapted.inventory.encode(u.wave)[0] for u in questions]
    given = (adapted.vocabulary, units, limit, reply, templates)
    chains = generation.answer(model.get_base_model(), *given)
    model.unload()  # the weights of stage 2 alone are kept
    right = [chain.ta == u.answer for chain, u in zip(chains, questions, strict=True)]
    return asdict(bootstrap_mean(right, draws=run.recipe.evaluation.bootstrap_draws))
