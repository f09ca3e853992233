"""A folder of recordings with their texts → sentences and files.

items.jsonl               a line {"path": …, "text": …} each, as `corpora sample` writes it
NAME.wav and NAME.txt     side by side
any other list            lines of a name and its text (tab, `|` or space between), as
                          `voice record --prompts` writes them, or LibriSpeech and LJ Speech
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from speechgpt_lib.corpora.tables import inside
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import files_in, read_text

SOUND = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".aiff", ".aif")
LISTS = (".txt", ".tsv", ".csv")
LAYOUTS = "items.jsonl, a NAME.txt beside each NAME.wav, or a list of names and texts"


class Spoken(NamedTuple):
    """A sound file and what is said in it; `held_out` where the folder says that training never
    reads the sentence."""

    path: Path
    text: str
    held_out: bool = False


def read_folder(folder: Path) -> list[Spoken]:
    """The recordings of a folder that have a text.  Raises UserError where there are none."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: name one with recordings and {LAYOUTS}")
    sounds = [path for path in files_in(folder) if path.suffix.lower() in SOUND]
    if not sounds:
        raise UserError(f"no sound file in {folder}: expected one of {', '.join(SOUND)}")
    found = _items(folder) or _side_by_side(sounds) or _listed(folder, sounds)
    if not found:
        raise UserError(f"no texts in {folder}, only {len(sounds)} sound files: add {LAYOUTS}")
    return found


def _items(folder: Path) -> list[Spoken]:
    path, found = folder / "items.jsonl", []
    if not path.is_file():
        return []
    with reading(path, "expected an object with path and text on each line"):
        for line in read_text(path).splitlines():
            if line.strip():
                record = json.loads(line)
                name, text = record["path"], str(record["text"]).strip()
                found.append(Spoken(inside(folder, name), text, bool(record.get("held_out"))))
    return [spoken for spoken in found if spoken.text]


def _side_by_side(sounds: list[Path]) -> list[Spoken]:
    texts = {path: path.with_suffix(".txt") for path in sounds}
    read = [Spoken(p, " ".join(read_text(t).split())) for p, t in texts.items() if t.is_file()]
    return [spoken for spoken in read if spoken.text]


def _listed(folder: Path, sounds: list[Path]) -> list[Spoken]:
    known: dict[str, Path] = {}
    for path in sounds:
        known |= {path.name: path, path.stem: path}
    found = {}
    for path in files_in(folder):
        if path.suffix.lower() in LISTS:
            for line in read_text(path).splitlines():
                name, *rest = re.split(r"\t|\||\s", line.strip(), maxsplit=1)
                if name in known and rest and rest[0].strip():
                    found[known[name]] = Spoken(known[name], rest[0].split("|")[-1].strip())
    return [found[path] for path in sounds if path in found]
