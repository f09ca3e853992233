"""A text-to-unit model for a corpus on disk: unit tables of `speechgpt units extract` → a trained generator (the paper's: LibriSpeech).

Pairs are held in memory as small integers (LibriSpeech's 281,000 take about 0.3 GB), so every process can draw any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.cross_modal import unit_tables
from speechgpt_lib.instructions.split import is_held_out
from speechgpt_lib.metrics.unit_errors import unit_error_rate
from speechgpt_lib.recipes.schema import TextToUnitSettings
from speechgpt_lib.runs.artefacts import hash_json, read_json, write_json, write_text
from speechgpt_lib.text_to_unit.model import POSITIONS
from speechgpt_lib.text_to_unit.spoken_form import spoken_form
from speechgpt_lib.text_to_unit.training import train_text_to_unit
from speechgpt_lib.training.devices import resolve_device
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.extract import read_units

HELD_OUT_SHARE = 0.002
MEASURED = 200  # held-out sentences at most


def read_pairs(
    folders: Sequence[Path], inventory_id: str
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, np.ndarray]], dict]:
    """(training pairs, held-out pairs, counts of what was left out) of text in its spoken form and merged units."""
    training, held_out, dropped = [], [], {"no text": 0, "too long": 0}
    for folder in folders:
        for row in read_units(unit_tables(folder)[0].parent, inventory_id):
            text = spoken_form(row.text)
            if not text or len(row.units) == 0:
                dropped["no text"] += 1
            elif len(row.units) >= POSITIONS or len(text) >= POSITIONS:
                dropped["too long"] += 1
            else:
                (held_out if is_held_out(text, HELD_OUT_SHARE) else training).append(
                    (text, row.units.astype(np.int16))
                )
    return training, held_out, dropped


def train_on_units(
    folders: Sequence[Path],
    settings: TextToUnitSettings,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    world_size: int = 1,
    say: Callable[[str], None] = print,
) -> dict | None:
    """Train on the pairs in `folders` (each written by `speechgpt units extract`, all of one inventory), and save the model in `out`.

    Killed and started again it goes on.  Returns the facts, also in `out/facts.json`; None in all processes but the first.

    Raises:
        UserError: a folder is missing, of another inventory or without text, or `out` was begun with other pairs or settings.
    """
    import torch.distributed

    inventory = read_json(Path(folders[0]) / "inventory" / "inventory.json")
    pairs, held_out, dropped = read_pairs(folders, inventory["id"])
    if not pairs:
        raise UserError(
            f"{folders[0]} has no utterance with text ({dropped}): a text-to-unit model needs transcripts"
        )
    identity = {
        "settings": settings.model_dump(mode="json"),
        "inventory": inventory["id"],
        "seed": seed,
    }
    _claim(out, hash_json(identity | {"texts": [text for text, _ in pairs]}))
    if (out / "facts.json").is_file():
        say(f"{out} is finished already")
        return read_json(out / "facts.json")
    say(f"{len(pairs)} pairs, {sum(len(units) for _, units in pairs)} units; left out: {dropped}")

    def tell(record: dict) -> None:
        if record["step"] % 100 == 0:
            say(f"step {record['step']}: loss {record['loss']:.3f}")

    options = TrainingOptions(seed, resolve_device(device), world_size, tell)
    settings = settings.model_copy(update={"pretrained": None})
    model, summary = train_text_to_unit(
        pairs,
        inventory["clusters"],
        settings,
        out / "training",
        options,
        inventory_id=inventory["id"],
    )
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return None
    model = replace(model, spoken_form=True)
    model.save(out)
    facts = {
        "inventory": inventory["id"],
        "pairs": len(pairs),
        "dropped": dropped,
        "training": summary,
    }
    measured = [pair for pair in held_out if model.refuses(pair[0]) is None][:MEASURED]
    if measured:
        made = model.generate([text for text, _ in measured])
        facts |= {
            "held_out": len(measured),
            "held_out_unit_error_rate": unit_error_rate([units for _, units in measured], made),
        }
    write_json(out / "facts.json", facts)
    return facts


def _claim(out: Path, key: str) -> None:
    """Training resumes from what lies in `out/training`, so that must have been begun with the same pairs and settings."""
    begun = out / "training" / "key"
    if not begun.is_file() and (out / "text_to_unit.json").exists():
        raise UserError(f"{out} holds another text-to-unit model: choose another --out")
    if begun.is_file() and begun.read_text() != key:
        raise UserError(
            f"{out / 'training'} was begun with other pairs, settings or another seed: choose another --out, or delete it"
        )
    write_text(begun, key)
