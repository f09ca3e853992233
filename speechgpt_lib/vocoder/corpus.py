"""A vocoder for a corpus on disk: unit tables of `speechgpt units extract` and the sound files beside them → a trained vocoder.

Units are held in memory (two bytes a frame: 0.4 MB an hour), sound is read piece by piece from its files, a few batches ahead.  So
LJSpeech (24 h) and VCTK (44 h) need no more memory than an hour does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.segment_tables import iterate_table
from speechgpt_lib.corpora.segments import Segment, read_part
from speechgpt_lib.errors import UserError
from speechgpt_lib.evaluation.vocoder import Original, evaluate_vocoder
from speechgpt_lib.recipes.schema import VocoderSettings
from speechgpt_lib.runs.artefacts import hash_json, write_json, write_text
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.extract import read_units
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.sequence import merge
from speechgpt_lib.vocoder.generator import HOP
from speechgpt_lib.vocoder.speech import Pair
from speechgpt_lib.vocoder.synthesis import Vocoder
from speechgpt_lib.vocoder.training import train_durations, train_vocoder

HELD_OUT = 20  # utterances that are kept from training, to measure by
AHEAD = 4  # batches read beforehand


class SpeechOnDisk:
    """The utterances of a corpus as `vocoder.speech.Speech`; `rows` are (segment, frames of units)."""

    def __init__(self, root: Path, rows: list[tuple[Segment, np.ndarray]], many_speakers: bool):
        self.root, self.segments = root, [segment for segment, _ in rows]
        self.lengths = np.array([len(frames) for _, frames in rows], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.units = (
            np.concatenate([frames for _, frames in rows]) if rows else np.zeros(0, np.uint16)
        )
        self.names = (
            tuple(sorted({segment.speaker for segment in self.segments})) if many_speakers else ()
        )
        number = {name: k for k, name in enumerate(self.names)}
        self.speakers = np.array(
            [number.get(segment.speaker, 0) for segment in self.segments], dtype=np.int64
        )

    def frames(self, index: int) -> np.ndarray:
        return self.units[self.starts[index] : self.starts[index + 1]].astype(np.int64)

    def piece(self, index: int, start: int, count: int) -> Pair:
        wave = read_part(self.root, self.segments[index], start * HOP, count * HOP)
        return self.frames(index)[start : start + count], wave


def train_on_units(
    folder: Path,
    root: Path,
    settings: VocoderSettings,
    out: Path,
    *,
    many_speakers: bool = False,
    seed: int = 0,
    device: str = "auto",
    world_size: int = 1,
    say: Callable[[str], None] = print,
) -> dict | None:
    """Train generator and duration predictor in `out/training`, save the vocoder in `out`, and measure it on held-out utterances.

    folder: what `speechgpt units extract` wrote, with `utterances/`, `inventory/` and `units/`; root: the corpus' folder.
    Returns the facts, also written to `out/facts.json`; None in all processes but the first.

    Raises:
        UserError: folders missing, no utterance as long as a segment, or `out` was begun with other settings or units.
    """
    import torch.distributed

    inventory = UnitInventory.load(folder / "inventory")
    if not root.is_dir():
        raise UserError(f"no corpus at {root}: give the folder that holds its sound files")
    rows = held_out_last(read_rows(folder, inventory.id))
    if len(rows) <= HELD_OUT:
        raise UserError(
            f"{folder} has {len(rows)} utterances: more than {HELD_OUT} are needed, which are kept to measure by"
        )
    speech, rest = SpeechOnDisk(root, rows[:-HELD_OUT], many_speakers), rows[-HELD_OUT:]
    identity = {
        "settings": settings.model_dump(mode="json"),
        "inventory": inventory.id,
        "seed": seed,
        "speakers": len(speech.names),
    }
    _claim(
        out / "training",
        hash_json(identity | {"utterances": [segment.id for segment in speech.segments]}),
    )
    say(
        f"{speech.lengths.sum() / 180_000:.2f} h in {len(speech.lengths)} utterances of {max(1, len(speech.names))} voices"
    )

    def tell(record: dict) -> None:
        if record["step"] % 100 == 0:
            say(
                f"step {record['step']}: "
                + ", ".join(
                    f"{k} {record[k]:.3f}" for k in ("reconstruction", "frames_off") if k in record
                )
            )

    options = TrainingOptions(seed, resolve_device(device), world_size, tell)
    work, sample = out / "training", speech.frames(0)
    generator, summary = train_vocoder(
        speech, inventory.count, settings, work / "generator", options, sample=sample, ahead=AHEAD
    )
    sequences = [merge(speech.frames(index)) for index in range(len(speech.lengths))]
    durations, duration_summary = train_durations(
        sequences, inventory.count, settings, work / "durations", options
    )
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return None
    vocoder = Vocoder(generator, durations, inventory.id, settings, speech.names)
    vocoder.save(out)
    originals = [original(root, segment, frames) for segment, frames in rest]
    figures = evaluate_vocoder(vocoder, originals, inventory)
    facts = {
        "generator": summary,
        "durations": duration_summary,
        "held_out": figures,
        "inventory": inventory.id,
    }
    write_json(out / "facts.json", facts)
    return facts


def read_rows(folder: Path, inventory_id: str) -> list[tuple[Segment, np.ndarray]]:
    """Every utterance that has units, in the order of the tables, with its frames."""
    segments = {segment.id: segment for segment in iterate_table(folder / "utterances")}
    found = read_units(folder / "units", inventory_id)
    return [(segments[row.id], row.frames.astype(np.uint16)) for row in found if row.id in segments]


def held_out_last(rows: list[tuple[Segment, np.ndarray]]) -> list[tuple[Segment, np.ndarray]]:
    """In an order that depends on the ids alone, so that the same utterances are held out wherever and whenever it is trained."""
    return sorted(rows, key=lambda row: hashlib.sha256(row[0].id.encode()).digest())


def original(root: Path, segment: Segment, frames: np.ndarray) -> Original:
    units, durations = merge(frames)
    return Original(
        read_part(root, segment, 0, len(frames) * HOP), segment.text or "", units, durations
    )


def _claim(work: Path, key: str) -> None:
    """Training resumes from what lies in `work`, so that must have been begun with the same speech and settings."""
    begun = (work / "key").read_text() if (work / "key").is_file() else None
    if begun is None and (work.parent / "vocoder.json").exists():
        raise UserError(f"{work.parent} holds another vocoder: choose another --out")
    if begun not in (None, key):
        raise UserError(
            f"{work} was begun with other units, settings or another seed: choose another --out, or delete it"
        )
    write_text(work / "key", key)
