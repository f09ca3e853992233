"""What a model of speech knows without a word of text: of two recordings that differ in one thing,
does it find the right one likelier?

sWUGGY asks for words, sBLIMP for grammar, Spoken StoryCloze for endings, SALMon for voices and
rooms.  Chance is a half: a pair scores 1, or 0.5 where both are equally likely.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import transformers

from speechgpt_lib.corpora.audio import inspect
from speechgpt_lib.corpora.minimal_pairs import MinimalPair, read_pairs
from speechgpt_lib.corpora.tables import TEXT_COLUMNS, Utterance
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.likelihood import unit_log_likelihoods
from speechgpt_lib.language_model.model import load_model
from speechgpt_lib.language_model.vocabulary import UnitVocabulary
from speechgpt_lib.metrics.unit_errors import bootstrap_mean
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.units.extract import Counts, ShardEncoder, read_units, write_units
from speechgpt_lib.units.inventory import UnitInventory, check_inventory

AT_ONCE = 2000  # recordings whose units are made in one go
STAGES = ("expanded_model", "stage1", "stage2")  # that have units in their vocabulary


class Scored(NamedTuple):
    """`pair_accuracy` of each stage, and how likely the last one found each recording."""

    accuracy: dict[str, dict]
    scores: dict[str, float]


def score_set(
    run: Run, folder: Path, stages: Sequence[str] | None = None, per_token: bool = True
) -> Scored:
    """Score models of a run (default: all that are there) on a published set of minimal pairs.

    Raises UserError: no such stage, or not made yet; a set that can't be read (see `read_pairs`).
    """
    if unknown := [stage for stage in stages or () if stage not in STAGES]:
        raise UserError(f"unknown stage {unknown[0]!r}: choose {', '.join(STAGES)}")
    pairs, root = read_pairs(folder), Path(folder).expanduser()
    there = [stage for stage in STAGES if run.find(stage)]
    chosen = list(stages or there or STAGES[1:2])
    found = {stage: run.require(stage).path for stage in chosen}
    inventory = UnitInventory.load(run.require("inventory").path)
    device, accuracy = resolve_device(run.recipe.device), {}
    units = encode_recordings(root, names_of(pairs), inventory, device)
    for stage, path in found.items():
        model, vocabulary = load_model(path)
        check_inventory(inventory.id, vocabulary.inventory, f"the model of {stage}")
        scores = score_recordings(model.to(device), vocabulary, units, per_token)
        accuracy[stage] = pair_accuracy(pairs, scores, run.recipe.evaluation.bootstrap_draws)
    return Scored(accuracy, scores)


def score_own(
    folder: Path, model: transformers.PreTrainedModel, vocabulary: UnitVocabulary, draws: int = 1000
) -> dict:
    """`pair_accuracy` of a model on what the step `minimal_pairs` left in `folder`; {} where the
    corpora of the run have no pairs."""
    if not (folder / "pairs").is_dir():
        return {}
    units = load_recordings(folder, vocabulary.inventory)
    scores = score_recordings(model, vocabulary, units)
    return pair_accuracy(read_pairs(folder / "pairs"), scores, draws)


def names_of(pairs: Sequence[MinimalPair]) -> list[str]:
    """The recordings of some pairs, each once."""
    return list(dict.fromkeys(name for pair in pairs for name in (pair.right, pair.wrong)))


def encode_recordings(
    root: Path, names: Sequence[str], inventory: UnitInventory, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Merged units (n,) of recordings below `root`, by name.

    Raises UserError for those that can't be used, naming the first.
    """
    encoder, found = ShardEncoder(inventory, ExtractionSettings(), device), {}
    for start in range(0, len(names), AT_ONCE):
        chosen = names[start : start + AT_ONCE]
        speech = [_recording(root, name) for name in chosen]
        found |= zip(chosen, encoder.encode(speech)[0], strict=True)
    if bad := {name: made["detail"] for name, made in found.items() if "units" not in made}:
        name, why = next(iter(bad.items()))
        more = f" and {len(bad) - 1} more" * (len(bad) > 1)
        raise UserError(f"{root}: {name}{more} can't be used ({why}): get them again")
    return {name: made["units"] for name, made in found.items()}


def save_recordings(folder: Path, units: Mapping[str, np.ndarray], inventory: str) -> None:
    """Write the units of recordings as a unit table, whose ids are their names."""
    text = dict.fromkeys(TEXT_COLUMNS, "")
    rows = [{**text, "id": name, "units": u, "durations": []} for name, u in units.items()]
    write_units(folder / "units-00000.parquet", rows, Counts(utterances=len(rows)), inventory)


def load_recordings(folder: Path, inventory: str) -> dict[str, np.ndarray]:
    """What `save_recordings` wrote."""
    return {row.id: row.units for row in read_units(folder, inventory)}


def _recording(root: Path, name: str) -> Utterance:
    header = inspect(root / name)
    seconds = header.frames / header.rate
    return Utterance(name, "", "", "", "", "", seconds, path=name, root=str(root))


def score_recordings(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    units: Mapping[str, np.ndarray],
    per_token: bool = True,
) -> dict[str, float]:
    """How likely the model finds each recording, by name: see `unit_log_likelihoods`."""
    given = list(units.values())
    return dict(zip(units, unit_log_likelihoods(model, vocabulary, given, per_token), strict=True))


def pair_accuracy(
    pairs: Sequence[MinimalPair], scores: Mapping[str, float], draws: int = 1000
) -> dict:
    """The share of items whose right recording is likelier: {"all": estimate, part: estimate}.

    Estimates are {value, n, low, high}; n counts items, over whose pairs is averaged first.
    """
    of: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair in pairs:
        right, wrong = scores[pair.right], scores[pair.wrong]
        of[pair.part, pair.item].append(0.5 if right == wrong else float(right > wrong))
    items = {key: float(np.mean(values)) for key, values in of.items()}
    parts = dict.fromkeys(part for part, _ in items)
    groups = {"all": list(items.values())}
    if len(parts) > 1:
        groups |= {part: [v for (p, _), v in items.items() if p == part] for part in parts}
    return {name: asdict(bootstrap_mean(values, draws=draws)) for name, values in groups.items()}
